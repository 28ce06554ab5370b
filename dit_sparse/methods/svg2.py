"""Sparse VideoGen2, semantic-aware permutation (arXiv 2505.18875).

    1. k-means of the queries and of the keys of each head, warm
       from the step before; sort the tokens by cluster         -> arrange
    2. P_cj = n_j exp(S_cj) / sum_l n_l exp(S_cl) of centroids,
       S_cj = scale * qbar_c . kbar_j                           -> score
    3. per query cluster keep the shortest prefix of falling P
       that reaches top_p, and at least the share min_keep of
       the key clusters                                         -> select
    4. exact attention on the kept pairs, drop the rest,
       restore the order                                        -> compute

Differs from the paper:
- cluster counts follow the number of tokens (0; see `Clusters`) instead
  of a table per model: the code has 300 / 1000 at 75,600 tokens and
  200 / 1000 at 480p, the paper 100 / 500; the rule gives 302 / 990 and
  199 / 652.
- k-means starts from one token in each equal part of the sequence, the
  same for all heads; the code draws at random with replacement, the paper
  names k-means++. 50 iterations cold, 2 warm, as the code; the code also
  stops early below a move of 1e-4, which would wait for the device.
- centroids are kept per layer and CFG branch; in the code each branch
  overwrites the other's. They are not updated in dense steps (the code
  does so for some models): the first sparse step starts cold.
- |c|^2 is taken in float32 (the code: bfloat16), and the sort is stable.
- dense_steps is a share of the steps, 0.2 (code: 0.1 to 0.35 by model,
  paper 0.3); dense_layers is 1 of one count (code: 3 % of the layers).
- joint text is exact and seen by all; padding is not told apart from the
  prompt (the code gives padding a block that only padding sees).
- keep (ours; 0 = off) fixes the density: each row keeps its best
  clusters, as many as come nearest to that share of the tokens; top_p and
  min_keep are then not used.
"""

from dit_sparse.arrange.clusters import Clusters
from dit_sparse.compute.attend import Attend
from dit_sparse.compute.remainder import Drop
from dit_sparse.core import Method
from dit_sparse.registry import register
from dit_sparse.schedule import Schedule
from dit_sparse.score.centroids import CentroidMass
from dit_sparse.select.budgets import TokenQuota
from dit_sparse.select.topp import TopP


@register("svg2", arxiv="2505.18875", code="svg-project/Sparse-VideoGen")
def svg2(
    top_p=0.9,
    min_keep=0.1,
    keep=0.0,
    q_clusters=0,
    k_clusters=0,
    cold_iters=50,
    warm_iters=2,
    dense_steps=0.2,
    dense_layers=1,
):
    return Method(
        arrange=Clusters(q_clusters, k_clusters, cold_iters, warm_iters),
        score=CentroidMass(),
        select=TokenQuota(keep) if keep else TopP(top_p, min_keep),
        compute=Attend(remainder=Drop()),
        schedule=Schedule(dense_steps, dense_layers),
    )
