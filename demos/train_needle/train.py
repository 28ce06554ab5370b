"""Train the built-in language model `needle`: one command, on one device, that stops in time.

    python demos/train_needle/train.py --work DIR --minutes 6 --export OUT
    python demos/train_needle/train.py --work DIR --minutes 3 --device cpu --stages 1

Texts grow from 256 to 16,384 tokens; every text ends with many questions, each of which teaches a
look-up. A stage ends when nearly all its answers are right, or its share of the time is used.
Called again with the same folder it goes on where it stopped. Exit codes: 0 trained, or out of time
with the state saved; 3 the last stage ended below its gate.
"""

import argparse
import json
import math
import random
import sys
import time
from pathlib import Path
from typing import Any

STARTED = time.monotonic()

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "train_shapes"), str(HERE.parents[1])]

import export  # noqa: E402
import model as llama  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from optim import Average, Muon, rate  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from transformers import LlamaForCausalLM  # noqa: E402

from dit_sparse.haystack import TASKS, Counts, texts  # noqa: E402

# tokens of a text; codes, roads; questions of recall, passkey and roads
LADDER = (
    (256, (8, 1), (6, 1, 1)),
    (1024, (24, 3), (20, 1, 3)),
    (4096, (64, 8), (48, 1, 8)),
    (16384, (128, 12), (96, 1, 12)),
)
# share of the time; answers right that end a stage; tokens of a step
SHARES, GATE, LAST_GATE = (0.25, 0.15, 0.25, 0.35), 0.99, 0.99
TOKENS = (1 << 16, 1 << 16, 1 << 17, 1 << 17)
# weight of the plain language model loss beside that of the looked-up tokens
FILLER = 0.3
LOOK_EVERY, SAVE_EVERY = 6.0, 60.0
KERNELS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of the full state")
    parser.add_argument("--minutes", type=float, default=6.0, help="wall clock of this call")
    parser.add_argument("--export", type=Path, help="write the model here as it gets better")
    parser.add_argument("--stages", type=int, default=len(LADDER), help="how many of them to run")
    parser.add_argument("--scale", type=float, default=1.0, help="of the tokens of a step")
    parser.add_argument("--eager", action="store_true", help="capture no CUDA graphs")
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    return parser.parse_args()


class Trainer:
    """The model, its optimisers, and what happened so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        cuda = options.device != "cpu" and torch.cuda.is_available()
        self.device = torch.device("cuda" if cuda else "cpu")
        self.options = options
        self.end = STARTED + 60 * options.minutes - 8
        torch.manual_seed(0)
        self.config = export.config()
        self.model = LlamaForCausalLM(self.config).to(self.device)
        self.parameters = dict(self.model.named_parameters())
        for parameter in self.parameters.values():
            # a captured graph adds to gradients where they are
            parameter.grad = torch.zeros_like(parameter)
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Tensor]] = {}
        matrices = [p for n, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in n]
        kept = {id(p) for p in matrices}
        others = [p for p in self.model.parameters() if id(p) not in kept]
        self.optimisers = [
            Muon(matrices, lr=options.lr)
            if options.optimizer == "muon"
            else torch.optim.AdamW(matrices, lr=options.lr, betas=(0.9, 0.98), weight_decay=0.01),
            torch.optim.AdamW(others, lr=options.lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.average = Average(self.model, 0.98)
        name = torch.cuda.get_device_name() if cuda else "CPU"
        self.record: dict[str, Any] = {"device": name, "seconds": 0.0, "stages": []}
        self.generator = torch.Generator(self.device).manual_seed(1)
        self.chance = random.Random(1)
        self.saved = time.monotonic()

    def run(self) -> float:
        """Climb the ladder; return the share of right answers on its last rung."""
        first = self.resume()
        if first >= self.options.stages:
            return self.look(self.options.stages - 1)["all"]
        right = 0.0
        for number in range(first, self.options.stages):
            left = self.end - time.monotonic()
            share = SHARES[number] / sum(SHARES[number : self.options.stages])
            right = self.stage(number, left * share)
            self.save(number + (right >= GATE))
        return right

    def resume(self) -> int:
        """Take up the state of a former call, if any; return the rung to go on with."""
        path = self.options.work / "state.pt"
        if not path.exists():
            return 0
        saved = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(saved["model"])
        for optimiser, values in zip(self.optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(values)
        self.average.load(saved["average"], saved["steps"])
        self.record = json.loads(saved["record"])
        calls = len(self.record["stages"])
        self.generator.manual_seed(1 + calls)
        self.chance.seed(1 + calls)
        return saved["stage"]

    def stage(self, number: int, seconds: float) -> float:
        """Train on one length, and now and then on shorter ones, until the gate or the time."""
        last = number == len(LADDER) - 1
        begin = looked = time.monotonic()
        row: dict[str, Any] = {"length": LADDER[number][0], "seconds": 0.0, "steps": 0, "curve": []}
        self.record["stages"].append(row)
        right, used, steps = 0.0, 0.0, 0
        while used < 1 and time.monotonic() < self.end:
            used = (time.monotonic() - begin) / max(seconds, 1e-3)
            warm = min(1.0, (steps + 1) / 50)
            fall = rate(used, 1.0, 0.05, warm=0.0, flat=0.4) if last else 1.0
            for group in (g for o in self.optimisers for g in o.param_groups):
                group["lr"] = self.options.lr * warm * fall / math.sqrt(1 + number)
            # every fourth step on a shorter length, so that nothing is forgotten
            place = number if steps % 4 or not number else (steps // 4) % number
            loss = self.update(place)
            steps += 1
            row.update(seconds=round(time.monotonic() - begin, 1), steps=steps)
            if time.monotonic() - looked > LOOK_EVERY:
                found = self.look(number)
                looked, right = time.monotonic(), found["all"]
                row["curve"].append([row["seconds"], steps, round(float(loss), 4), found])
                shown = "  ".join(f"{task} {value:.4f}" for task, value in found.items())
                self.say(f"{row['length']:6d} step {steps:5d} loss {float(loss):.3f}  {shown}")
                if time.monotonic() - self.saved > SAVE_EVERY:
                    self.save(number)
                if right >= GATE and not last:
                    break
        return right

    def update(self, place: int) -> Tensor:
        """Take one step on fresh texts of a rung; return its loss."""
        length, most, asked = LADDER[place]
        codes, roads = (max(1, round(n * self.chance.uniform(0.3, 1))) for n in most)
        asked = (min(asked[0], codes), asked[1], min(asked[2], roads))
        batch = max(1, int(self.options.scale * TOKENS[place]) // length)
        counts = Counts(codes, roads, dict(zip(TASKS, asked, strict=True)))
        found = texts(batch, length, counts, self.generator)
        loss = self.gradients(place, found.tokens, (found.sought > 0).float())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self.average.update()
        return loss

    def gradients(self, place: int, tokens: Tensor, sought: Tensor) -> Tensor:
        """Leave the gradients of a rung's texts in the parameters; return the loss.

        On a GPU all launches of a rung are captured once and replayed.
        """
        if self.device.type == "cpu" or self.options.eager:
            return self.backward(tokens, sought)
        if place not in self.graphs:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(2):
                    self.backward(tokens, sought)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                loss = self.backward(tokens, sought)
            self.graphs[place] = (graph, tokens, sought, loss)
        graph, *static, loss = self.graphs[place]
        for old, new in zip(static, (tokens, sought), strict=True):
            old.copy_(new)
        graph.replay()
        return loss.clone()

    def backward(self, tokens: Tensor, sought: Tensor) -> Tensor:
        """Put the gradients of texts in place of the former ones; return the loss."""
        torch._foreach_zero_([p.grad for p in self.parameters.values()])
        loss = self.loss(tokens, sought)
        loss.backward()
        return loss.detach()

    def logits(self, tokens: Tensor) -> Tensor:
        return llama.logits(self.parameters, self.config, tokens)

    def loss(self, tokens: Tensor, sought: Tensor) -> Tensor:
        """Return the mean loss of looked-up tokens, plus a share of that of all others."""
        losses = F.cross_entropy(
            self.logits(tokens)[:, :-1].flatten(0, 1).float(),
            tokens[:, 1:].flatten(),
            reduction="none",
        )
        wanted = sought[:, 1:].flatten()
        answers = (losses * wanted).sum() / wanted.sum()
        return answers + FILLER * (losses * (1 - wanted)).sum() / (1 - wanted).sum()

    @torch.no_grad()
    def look(self, place: int) -> dict[str, float]:
        """Return the share of looked-up tokens that the averaged model gets right, by task."""
        kept = [p.detach().clone() for p in self.model.parameters()]
        self.average.apply()
        length, (codes, roads), asked = LADDER[place]
        counts = Counts(codes, roads, dict(zip(TASKS, asked, strict=True)))
        generator = torch.Generator(self.device).manual_seed(1 << 20)
        batch = max(1, int(self.options.scale * TOKENS[place]) // length)
        found = texts(batch, length, counts, generator)
        hits = self.logits(found.tokens)[:, :-1].argmax(-1) == found.tokens[:, 1:]
        sought = found.sought[:, 1:]
        out = {"all": hits[sought > 0].float().mean().item()}
        for number, task in enumerate(TASKS, 1):
            out[task] = round(hits[sought == number].float().mean().item(), 5)
        torch._foreach_copy_([p.detach() for p in self.model.parameters()], kept)
        return out

    def save(self, stage: int) -> None:
        """Write the state, and the averaged model where it is wanted."""
        self.options.work.mkdir(parents=True, exist_ok=True)
        self.record["seconds"] = round(sum(row["seconds"] for row in self.record["stages"]), 1)
        part = self.options.work / "state.part"
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimisers": [o.state_dict() for o in self.optimisers],
                "average": self.average.state(),
                "steps": self.average.steps,
                "record": json.dumps(self.record),
                "stage": stage,
            },
            part,
        )
        part.replace(self.options.work / "state.pt")
        if self.options.export:
            export.write(self.average.state(), self.record, self.options.export)
        self.saved = time.monotonic()

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - STARTED:6.1f}s] {text}", flush=True)


def main() -> int:
    options = arguments()
    torch.backends.cuda.matmul.allow_tf32 = True
    trainer = Trainer(options)
    count = sum(p.numel() for p in trainer.model.parameters())
    trainer.say(f"{count:,} parameters on {trainer.record['device']}")
    # the plain form of attention would hold maps of all pairs: better to fail
    with sdpa_kernel(KERNELS if trainer.device.type == "cuda" else [SDPBackend.MATH, *KERNELS]):
        right = trainer.run()
    trainer.say(f"{right:.4f} of the looked-up tokens right on the last rung")
    return 0 if right >= LAST_GATE or options.stages < len(LADDER) else 3


if __name__ == "__main__":
    sys.exit(main())
