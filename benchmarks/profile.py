"""What the exact per-example Fisher costs, and which ways of taking it are wrong.

Run: python benchmarks/profile.py [SECTION ...] [--rounds 7] [--threads 2] [--models "BERT 768,Llama 1024"]

Every round measures every row once, in a new order; a row's ratio is the median over rounds of its time divided by the
floor's of the same round.  The floor is one plain forward and backward pass of the same batches in which only the LoRA
parameters require a gradient.  "floor again" is the noise.  Sections: fisher, lengths, correct, memory.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from timing import Work, compare, show

# In place of this script's own folder, whose profile.py would hide the standard library's.
sys.path[0] = str(Path(__file__).resolve().parents[1] / "tests")
import peft  # noqa: E402
import torch  # noqa: E402
import transformers as tf  # noqa: E402
from torch import nn  # noqa: E402

import models  # noqa: E402  # pyright: ignore[reportMissingImports]
from reference import elementwise_slow as slow  # noqa: E402  # pyright: ignore[reportMissingImports]
from tailora.signals.batching import sort_by_length  # noqa: E402
from tailora.signals.elementwise import elementwise_fisher  # noqa: E402
from tailora.signals.elementwise.passes import Options, Passes  # noqa: E402

# Models and batches


def adapted(model: nn.Module, rank: int = 8) -> nn.Module:
    """Return a model with LoRA on all linear layers, B drawn at random (B = 0 gives A no gradient)."""
    torch.manual_seed(0)
    made = peft.get_peft_model(model, peft.LoraConfig(r=rank, target_modules="all-linear", init_lora_weights=False))
    for module in made.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return made.to(next(model.parameters()).dtype).eval()


def bert() -> nn.Module:
    """Return a BERT of 6 layers and width 384."""
    torch.manual_seed(0)
    # Two labels are the default.
    config = tf.BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536)
    return adapted(tf.BertForSequenceClassification(config))


def llama() -> nn.Module:
    """Return a Llama of 8 layers and width 256."""
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=2048,
        hidden_size=256,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=688,
    )
    return adapted(tf.LlamaForCausalLM(config))


def wide_bert() -> nn.Module:
    """Return a BERT of 4 layers of BERT-base's own width."""
    torch.manual_seed(0)
    config = tf.BertConfig(hidden_size=768, num_hidden_layers=4, num_attention_heads=12, intermediate_size=3072)
    return adapted(tf.BertForSequenceClassification(config))


def wide_llama() -> nn.Module:
    """Return a Llama of 4 layers and width 1,024."""
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=2048,
        hidden_size=1024,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=8,
        intermediate_size=2816,
    )
    return adapted(tf.LlamaForCausalLM(config))


ALL_MODELS = {
    "BERT 384/6L": (bert, True),
    "Llama 256/8L": (llama, False),
    "BERT 768/4L": (wide_bert, True),
    "Llama 1024/4L": (wide_llama, False),
}
BUILT: dict[str, tuple[Callable[[], nn.Module], bool]] = {}
"""Those that were asked for."""


def batch_of(size: int, tokens: int, classifies: bool, lengths: list[int] | None = None) -> dict[str, torch.Tensor]:
    """Return a batch of random tokens, padded on the right where lengths are given."""
    generator = torch.Generator().manual_seed(size * 1000 + tokens)
    ids = torch.randint(5, 2000, (size, tokens), generator=generator)
    batch = {"input_ids": ids}
    if lengths is not None:
        mask = (torch.arange(tokens)[None] < torch.tensor(lengths)[:, None]).long()
        batch = {"input_ids": ids * mask, "attention_mask": mask}
    if classifies:
        return {**batch, "labels": torch.randint(0, 2, (size,), generator=generator)}
    labels = ids if lengths is None else torch.where(batch["attention_mask"].bool(), ids, -100)
    return {**batch, "labels": labels}


# Ways to take the Fisher: each returns a function that measures once


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that require a gradient, without the prefix that opacus adds."""
    return {n.removeprefix("_module."): p for n, p in model.named_parameters() if p.requires_grad}


def floor(model: nn.Module, batches: list[dict[str, Any]]) -> Work:
    """One plain forward and backward pass."""

    def work() -> None:
        for batch in batches:
            model.zero_grad(set_to_none=True)
            model(**batch).loss.backward()
        model.zero_grad(set_to_none=True)

    return work


def ours(model: nn.Module, batches: list[dict[str, Any]]) -> Work:
    """The whole call, with its check on two examples."""
    return lambda: elementwise_fisher(model, batches, one_by_one=None).tensors


def ours_running(model: nn.Module, batches: list[dict[str, Any]]) -> Work:
    """Every batch after the first look, as in a long calibration."""
    passes = Passes(model, trainable(model), Options("empirical", "square", "auto", "eval", True, 0, "raise"))
    flags = {p: p.requires_grad for p in model.parameters()}

    def work() -> None:
        for parameter in flags:
            parameter.requires_grad_(False)
        for batch in batches:
            passes.take(batch)
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)

    work()
    if passes.one_by_one:
        raise RuntimeError(passes.one_by_one)
    return work


def hooks(model: nn.Module, batches: list[dict[str, Any]]) -> Work:
    """Forward hook and tensor hook; autograd still forms its own weight gradients.  Assumes one example per row."""
    sums = {p: torch.zeros_like(p) for p in trainable(model).values()}
    leaves: list[Any] = [m for m in model.modules() if isinstance(m, nn.Linear) and m.weight.requires_grad]

    def hook(module: Any, args: tuple[Any, ...], output: torch.Tensor) -> None:
        x = args[0].detach()

        def take(gradient: torch.Tensor) -> None:
            size = len(x)
            product = torch.bmm(gradient.reshape(size, -1, gradient.shape[-1]).mT, x.reshape(size, -1, x.shape[-1]))
            sums[module.weight].view(-1).add_(product.square_().view(size, -1).sum(0), alpha=size**2)

        output.register_hook(take)

    def work() -> dict[str, torch.Tensor]:
        for total in sums.values():
            total.zero_()
        handles = [module.register_forward_hook(hook) for module in leaves]
        try:
            floor(model, batches)()
        finally:
            for handle in handles:
                handle.remove()
        count = sum(len(batch["labels"]) for batch in batches)
        return {name: sums[p] / count for name, p in trainable(model).items()}

    return work


def loop(model: nn.Module, batches: list[dict[str, Any]]) -> Work:
    """One example at a time, without its padding: what published FISH code does."""

    def work() -> dict[str, torch.Tensor]:
        sums = {name: torch.zeros_like(p) for name, p in trainable(model).items()}
        for batch in batches:
            for row in range(len(batch["labels"])):
                one = {key: value[row : row + 1] for key, value in batch.items()}
                if "attention_mask" in one:
                    length = int(one["attention_mask"].sum())
                    one = {k: v[:, :length] if v.ndim > 1 else v for k, v in one.items()}
                model.zero_grad(set_to_none=True)
                model(**one).loss.backward()
                for name, p in trainable(model).items():
                    if p.grad is not None:
                        sums[name].addcmul_(p.grad, p.grad)
        model.zero_grad(set_to_none=True)
        count = sum(len(batch["labels"]) for batch in batches)
        return {name: total / count for name, total in sums.items()}

    return work


def opacus(model: nn.Module, batches: list[dict[str, Any]]) -> Work:
    """``opacus.GradSampleModule`` with the model's own mean loss, in training mode as it demands."""
    from opacus.grad_sample import GradSampleModule

    def work() -> dict[str, torch.Tensor]:
        model.train()
        wrapped = GradSampleModule(model, loss_reduction="mean", strict=False)
        sums = {name: torch.zeros_like(p) for name, p in trainable(model).items()}
        try:
            for batch in batches:
                wrapped(**batch).loss.backward()
                for name, p in trainable(model).items():
                    samples: Any = p.grad_sample  # type: ignore[attr-defined]
                    if isinstance(samples, list):
                        samples = samples[-1]
                    sums[name] += samples.square_().sum(0)
                    p.grad_sample = None  # type: ignore[attr-defined]
                wrapped.zero_grad(set_to_none=True)
        finally:
            wrapped.to_standard_module()
            model.eval()
        count = sum(len(batch["labels"]) for batch in batches)
        return {name: total / count for name, total in sums.items()}

    return work


def vmap(model: nn.Module, batches: list[dict[str, Any]]) -> Work:
    """``torch.func.vmap(grad)`` in chunks of 8 examples."""
    frozen = {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad}

    def loss(parameters: dict[str, torch.Tensor], one: dict[str, torch.Tensor]) -> torch.Tensor:
        given = {key: value[None] for key, value in one.items()}
        return torch.func.functional_call(model, {**frozen, **parameters}, (), given).loss

    def work() -> dict[str, torch.Tensor]:
        parameters = {name: p.detach() for name, p in trainable(model).items()}
        sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
        for batch in batches:
            for start in range(0, len(batch["labels"]), 8):
                found = each(parameters, {key: value[start : start + 8] for key, value in batch.items()})
                for name, gradient in found.items():
                    sums[name] += gradient.square_().sum(0)
        count = sum(len(batch["labels"]) for batch in batches)
        return {name: total / count for name, total in sums.items()}

    return work


def backpack(model: nn.Module, batches: list[dict[str, Any]]) -> Work:
    """BackPACK's sum of squared per-example gradients on the LoRA linears."""
    from backpack import backpack as extension
    from backpack import extend
    from backpack.extensions import SumGradSquared

    model = copy.deepcopy(model)  # what it registers stays
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight.requires_grad:
            extend(module)

    def work() -> dict[str, torch.Tensor]:
        sums = {name: torch.zeros_like(p) for name, p in trainable(model).items()}
        for batch in batches:
            model.zero_grad(set_to_none=True)
            with extension(SumGradSquared()):
                model(**batch).loss.backward()
            for name, p in trainable(model).items():
                # Each example's share of the mean loss is 1/n, squared.
                sums[name] += p.sum_grad_squared * len(batch["labels"]) ** 2  # type: ignore[attr-defined]
                del p.sum_grad_squared
        model.zero_grad(set_to_none=True)
        count = sum(len(batch["labels"]) for batch in batches)
        return {name: total / count for name, total in sums.items()}

    return work


METHODS: dict[str, Callable[[nn.Module, list[dict[str, Any]]], Work]] = {
    "floor": floor,
    "floor again": floor,
    "ours": ours_running,
    "hooks": hooks,
    "opacus": opacus,
    "BackPACK": backpack,
    "vmap(grad), chunks of 8": vmap,
    "loop, batch size 1": loop,
}


# Measuring


def built(methods: dict[str, Any], model: nn.Module, batches: list[dict[str, Any]]) -> dict[str, Work]:
    """Return the rows that run at all, and say which do not."""
    rows = {}
    for name, method in methods.items():
        try:
            rows[name] = method(model, batches)
            rows[name]()
        except Exception as error:
            rows.pop(name, None)
            print(f"  {name:38s} fails: {type(error).__name__}: {str(error).partition(chr(10))[0][:90]}")
    return rows


def fisher(rounds: int) -> None:
    """The Fisher of LoRA parameters on batches of equal length."""
    for title, (make, classifies) in BUILT.items():
        for size, tokens in ((32, 64), (32, 16)):
            print(f"{title}, {size} examples of {tokens} tokens, LoRA r=8 on all linear layers")
            show(compare(built(METHODS, make(), [batch_of(size, tokens, classifies)]), rounds), "floor")


def lengths(rounds: int) -> None:
    """Text of varied length: 128 examples, log-normal, median 18, at most 64 tokens, in batches of 16."""
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.randn(128, generator=generator) * 0.7 + 2.9).exp().round().clamp(3, 64).long().tolist()
    for title, (make, classifies) in BUILT.items():
        parts = [drawn[start : start + 16] for start in range(0, 128, 16)]
        batches = [batch_of(16, max(part), classifies, part) for part in parts]
        model = make()
        ordered = sort_by_length(batches, 16, pad_token_id=0)
        tokens = [sum(batch["input_ids"].numel() for batch in given) for given in (batches, ordered)]
        print(
            f"{title}, 128 examples of 3 to 64 tokens; {tokens[0]} tokens padded in order, {tokens[1]} sorted by length"
        )
        rows = {
            "floor": floor(model, batches),
            "floor again": floor(model, batches),
            "ours, in order": ours(model, batches),
            "ours, sorted by length (sorting timed)": lambda m=model, b=batches: ours(
                m, [dict(one) for one in sort_by_length(b, 16, pad_token_id=0)]
            )(),
            "loop, batch size 1, trimmed": loop(model, batches),
        }
        show(compare(rows, rounds), "floor")


def correct(rounds: int) -> None:
    """The largest relative error of any tensor against the float64 loop, tiny models in float64."""
    cases = {
        "BERT": ("bert", False),
        "Llama, equal lengths": ("llama", True),
        "Llama, unequal lengths": ("llama", False),
        "OPT (flattened inputs)": ("opt", True),
        "ALBERT (shared layers)": ("albert", False),
        "DeBERTa-v2 (shared tables)": ("deberta", False),
        "Mixtral (experts)": ("mixtral", True),
    }
    methods = {name: method for name, method in METHODS.items() if "floor" not in name}
    methods["ours"] = ours
    print("largest relative error of any LoRA tensor against the float64 loop (batches of 6, tiny models)")
    for title, (name, equal) in cases.items():
        batch = models.batches(name, sizes=(6,))[0]
        if equal:
            batch = {**batch, "input_ids": batch["input_ids"].clamp(min=3)}
            batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
            batch["labels"] = batch["input_ids"].clone()
        found = []
        for label, method in methods.items():
            model = adapted(models.build(name, dtype=torch.float64), rank=3).double()
            names = list(trainable(model))
            wanted = slow.fisher(model, names, [batch], slow.LOSSES[models.BUILDERS[name][1]])
            try:
                fishers = method(model, [batch])()
                worst = largest_error(fishers, wanted)
                found.append(f"{label.split(',')[0]} {worst:.0e}" + (" WRONG" if not worst < 1e-5 else ""))
            except Exception as error:
                found.append(f"{label.split(',')[0]} fails ({type(error).__name__})")
        print(f"  {title:28s} " + "; ".join(found))


def largest_error(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Return the largest relative error of any tensor; tensors that are nothing but rounding are left out."""
    scale = max(float(tensor.norm()) for tensor in wanted.values())
    return max(
        float((found[name].double() - tensor).norm()) / max(float(tensor.norm()), 1e-8 * scale)
        for name, tensor in wanted.items()
    )


def memory(rounds: int) -> None:
    """Peak memory of one measurement above what the process held before, each in a process of its own."""
    for title, (make, classifies) in BUILT.items():
        print(f"{title}, 32 examples of 64 tokens: peak memory over the process with its model")
        model, batches = make(), [batch_of(32, 64, classifies)]
        taken = {}
        for name, method in METHODS.items():
            if name != "floor again":
                taken[name] = peak(lambda m=method, a=model, b=batches: m(a, b)())
                ratio = taken[name] / taken["floor"]
                print(f"  {name:38s} {taken[name] / 2**20:9.0f} MiB  ratio {ratio:6.2f}")


def peak(work: Work) -> float:
    """Return the bytes that a forked process needs for some work beyond what it began with."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            # glibc keeps freed blocks of varying size and would show its own habits: give them back at once.
            ctypes.CDLL(None).mallopt(-3, 2**18)
            before = status("VmRSS")
            work()
            os.write(writer, str(status("VmHWM") - before).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return float(text or "nan")


def status(field: str) -> int:
    """Return one field of /proc/self/status in bytes."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{field}:")[1].split()[0]) * 1024


SECTIONS = {"correct": correct, "memory": memory, "fisher": fisher, "lengths": lengths}


def main() -> None:
    """Run the chosen sections."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sections", nargs="*", help=", ".join(SECTIONS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--models", default="", help="beginnings of their names, joined by commas; all by default")
    given = parser.parse_args()
    starts = tuple(given.models.split(","))
    BUILT.update((name, made) for name, made in ALL_MODELS.items() if name.startswith(starts))
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, {given.threads} threads, load {os.getloadavg()[0]:.1f}, {given.rounds} rounds")
    for name in given.sections or SECTIONS:
        SECTIONS[name](given.rounds)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
