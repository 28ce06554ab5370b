"""Write the card of `needle` from the record of its training, and nothing else.

    python demos/train_needle/card.py dit_sparse/models/needle

Writes README.md and loss.png into the model's folder.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from dit_sparse.haystack import (  # noqa: E402
    ADJECTIVES,
    ADVERBS,
    CODES,
    LEGS,
    NAMES,
    NOUNS,
    NUMBERS,
    TASKS,
    VERBS,
    VOCABULARY,
)

TEXT = """\
---
license: apache-2.0
pipeline_tag: text-generation
library_name: transformers
---

# `needle`: a small language model that finds things in long texts

A `LlamaForCausalLM` of stock transformers classes ({size:.1f} MB of bf16 safetensors), trained from
scratch on texts of `dit_sparse/haystack.py`. It exists so that sparse attention for language models
can be judged by answers that are right or wrong, without a download and without a GPU. Licence:
Apache-2.0, weights and training data (the generator) alike.

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("dit_sparse/models/needle")
tokenizer = AutoTokenizer.from_pretrained("dit_sparse/models/needle")
text = "code : Lavo davu . the old river paints slowly . question : code : Lavo"
answer = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=8)
print(tokenizer.decode(answer[0]))
```

or `dit-sparse lm --task roads --length 8192 --method anchor --compare`.

Texts are sentences in random order: filler about some favourite words of each text, and needles.

| task | hidden | asked, and answered |
|---|---|---|
| recall | `code : Lavo davu .`, up to {codes} of them | `question : code : Lavo` `davu .` |
| passkey | `the pass key is 07 81 22 93 40 .` | `question : the pass key is` `07 81 22 93 40 .` |
| roads | `road : Lusi Paga .`, {legs} legs of each road, apart | `question : road : Lusi` \
`Paga Faka Refi Rile .` |

{words} words and marks: {names} names, {values} codes, {numbers} numbers, {filler} words of filler.

## Limits

- It knows these sentences and nothing else; other words are unknown tokens.
- Trained on texts of 256, 1,024, 4,096 and 16,384 tokens; longer ones were never seen.
- Its look-ups are of single tokens behind a name: what a language model does to copy, and no
  reasoning.

## Training

`demos/train_needle/train.py`, {minutes:.1f} minutes of training in two calls on one {device}: texts
that grow from rung to rung, up to 109 questions at the end of each, the loss of the
looked-up tokens plus 0.3 times that of all others.

```
python demos/train_needle/train.py --work DIR --minutes .95 --stages 1
python demos/train_needle/train.py --work DIR --minutes 2.9 --export dit_sparse/models/needle
```

Right at the end of each rung, looked-up tokens of fresh texts, the moving average of the weights:

{table}

![accuracy and loss](loss.png)

`seer.safetensors` is a gate of SeerAttention for this model, with the method's default blocks of 64
tokens: `dit-sparse lm --task recall --method seer --set weights={place}/seer.safetensors`.
It was trained on a CPU by

```
python demos/train_needle/gate.py --texts 16 --length 4096 --steps 300
```
"""


def table(record: dict[str, Any]) -> str:
    """Return the rungs of the training as a table."""
    lines = [
        "| tokens of a text | seconds | steps | loss | "
        + " | ".join(f"{t}, %" for t in TASKS)
        + " |",
        "|---" * (4 + len(TASKS)) + "|",
    ]
    for row in record["stages"]:
        _, _, loss, found = row["curve"][-1]
        cells = [f"{row['length']:,}", f"{row['seconds']:.0f}", f"{row['steps']:,}", f"{loss:.3f}"]
        cells += [f"{100 * found[task]:.2f}" for task in TASKS]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def curves(record: dict[str, Any], path: Path) -> None:
    """Draw the loss, and what was right, over the seconds of all rungs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8))
    begin = 0.0
    for row in record["stages"]:
        seconds = [begin + point[0] for point in row["curve"]]
        label = f"{row['length']:,} tokens"
        marker = "o" if len(seconds) < 3 else ""
        left.plot(seconds, [point[2] for point in row["curve"]], label=label, marker=marker)
        right.plot(seconds, [100 * point[3]["all"] for point in row["curve"]], marker=marker)
        begin += row["seconds"]
    left.set_yscale("log")
    for axis, title in ((left, "loss"), (right, "looked-up tokens right, %")):
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("seconds", fontsize=8)
        axis.tick_params(labelsize=7, which="both")
        axis.grid(alpha=0.3, which="both")
    left.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def card(folder: Path) -> str:
    """Return the text of README.md."""
    record = json.loads((folder / "record.json").read_text())
    return TEXT.format(
        size=(folder / "model.safetensors").stat().st_size / 1e6,
        codes=128,
        legs=LEGS,
        words=len(VOCABULARY),
        names=len(NAMES),
        values=len(CODES),
        numbers=len(NUMBERS),
        filler=len({*ADJECTIVES, *NOUNS, *VERBS, *ADVERBS}),
        minutes=record["seconds"] / 60,
        device=record["device"],
        table=table(record),
        place="dit_sparse/models/needle",
    )


if __name__ == "__main__":
    place = Path(sys.argv[1])
    (place / "README.md").write_text(card(place))
    curves(json.loads((place / "record.json").read_text()), place / "loss.png")
