"""SVG-EAR, error-aware routing and compensation (arXiv 2603.08982).

    1. k-means of the queries and of the keys of each head, warm
       from the step before; sort the tokens by cluster         -> arrange
    2. r_cj = E_cj / n_j, the squared error per key if cluster j
       were its mean key and value, for query centroid c:
       E_cj = sum_n ||exp(S_cj) vbar_j - exp(s_cn) v_n||^2,
       S_cj = scale * qbar_c . kbar_j, s_cn = scale * qbar_c . k_n
       (probe="key": sum_n (exp(S_cj) - exp(s_cn))^2)           -> score
    3. budget = the tokens of SVG2's prefix of falling mass that
       reaches top_p, min_keep of the clusters at least; spend it
       in the order of falling r                                -> select
    4. exact attention on the chosen pairs; every other cluster
       is one column of the same softmax: mean key, mean value,
       bias log n_j; restore the order                          -> compute

Differs from the paper (no code was found):
- its pseudo-code rescales a block's error by exp(2 (m_row - m_block));
  Eq. 8 needs exp(2 (m_block - m_row)). Its sum starts at the squared norm
  instead of 0, so that a cluster of one token would show an error. Both
  are mended.
- errors are kept as logarithms with a shift per pair and expanded around
  the mean value: no overflow, and less cancellation than in plain form.
- readings where it is silent: the probe includes the values, as its
  kernel does; the budget counts tokens; the block that crosses it is kept;
  min_keep is 0.1 and the k-means iterations are 50 / 2, as in the code of
  SVG2; joint text is exact and seen by all.
- cluster counts follow the number of tokens (0; see `Clusters`): 302 and
  990 at 75,600 tokens for its 300 and 1000. K-means starts from tokens
  spread evenly, the same for all heads, not at random; it is not run in
  dense steps, and centroids are kept per layer and CFG branch.
- dense_layers is 1 of one count; on HunyuanVideo the paper keeps the
  first layer of each of the two kinds dense.
- keep (ours; 0 = off) fixes the density: the budget is that share of the
  tokens, met as nearly as whole clusters allow; top_p and min_keep are
  then not used.
"""

from dit_sparse.arrange.clusters import Clusters
from dit_sparse.compute.attend import Attend
from dit_sparse.compute.remainder import Centroid
from dit_sparse.core import Method
from dit_sparse.registry import register
from dit_sparse.schedule import Schedule
from dit_sparse.score.centroids import ProbedError
from dit_sparse.select.budgets import TokenQuota, TopPBudget


@register("svg_ear", arxiv="2603.08982")
def svg_ear(
    top_p=0.85,
    min_keep=0.1,
    keep=0.0,
    probe="value",
    q_clusters=0,
    k_clusters=0,
    cold_iters=50,
    warm_iters=2,
    dense_steps=0.2,
    dense_layers=1,
):
    return Method(
        arrange=Clusters(q_clusters, k_clusters, cold_iters, warm_iters),
        score=ProbedError(probe),
        select=TokenQuota(keep) if keep else TopPBudget(top_p, min_keep),
        compute=Attend(remainder=Centroid()),
        schedule=Schedule(dense_steps, dense_layers),
    )
