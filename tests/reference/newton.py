"""A Newton step of the mean loss with every matrix written out: Jacobian, Gauss-Newton matrix, K-FAC and its inverse.

Reverse mode alone, one row of the Jacobian per logit; the logits' Hessian by its formula.
"""

from __future__ import annotations

import numpy as np
import torch

IGNORED = -100


def weight_names(targets):
    return [f"{target.name}.weight" for target in targets]


def position_weights(kind, batch, logits):
    """Weight of each position's cross-entropy in the sum of the examples' mean losses, [n, t] or [n]."""
    if kind == "classification":
        return torch.ones(len(logits), dtype=torch.float64), batch["labels"]
    labels = batch["labels"].clone()
    if kind == "causal-lm":
        labels = torch.cat([labels[:, 1:], torch.full((len(labels), 1), IGNORED)], dim=1)
    counts = labels != IGNORED
    return counts.double() / counts.sum(dim=1, keepdim=True), labels


def real_inputs(target, batch, given):
    """The inputs of a target at positions that are tokens, [m, in]."""
    mask = batch.get("attention_mask")
    reads_encoder = target.cross_attention and target.role in ("attention.key", "attention.value")
    if target.stack == "decoder" and not reads_encoder and batch["labels"].ndim == 2:
        decoder_like = given.shape[:-1] == batch["labels"].shape
        mask = batch["labels"] != IGNORED if decoder_like and "decoder_input_ids" not in batch else mask
    if given.ndim == 3 and mask is not None and mask.shape == given.shape[:2]:
        return given[mask.bool()]
    return given.reshape(-1, given.shape[-1])


class Dense:
    """Everything about one model, some targets and some batches; ``kind`` is ``classification`` and so on."""

    def __init__(self, model, targets, batches, kind, seed=0):
        self.model, self.targets, self.batches, self.kind = model, targets, batches, kind
        self.shapes = [tuple(model.get_parameter(name).shape) for name in weight_names(targets)]
        self.n = sum(len(batch["labels"]) for batch in batches)
        size = sum(a * b for a, b in self.shapes)
        self.gradient, self.matrix = torch.zeros(size).double(), torch.zeros(size, size).double()
        self.inputs = [[] for _ in targets]
        self.outputs = [0.0 for _ in targets]
        self.generator = torch.Generator().manual_seed(seed)
        self.loss = 0.0
        for batch in batches:
            self._take(batch)
        self.loss /= self.n
        self.gradient /= self.n
        self.matrix /= self.n
        self.a = [torch.cat(rows).T @ torch.cat(rows) / len(torch.cat(rows)) for rows in self.inputs]
        self.s = [matrix / self.n for matrix in self.outputs]

    def _take(self, batch):
        model, calls, handles = self.model, [[] for _ in self.targets], []
        for index, target in enumerate(self.targets):

            def keep(module, args, output, index=index):
                output.retain_grad()
                calls[index].append((args[0].detach(), output))

            handles.append(model.get_submodule(target.name).register_forward_hook(keep))
        weights = [model.get_parameter(name) for name in weight_names(self.targets)]
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        logits = model(**batch).logits
        for handle in handles:
            handle.remove()
        size = logits.numel()
        rows = torch.eye(size, dtype=torch.float64).reshape(size, *logits.shape)
        parts = torch.autograd.grad(logits, weights, rows, retain_graph=True, is_grads_batched=True)
        jacobian = torch.cat([part.reshape(size, -1) for part in parts], dim=1)
        p = logits.detach().softmax(-1)
        scale, labels = position_weights(self.kind, batch, logits)
        log_p = logits.detach().log_softmax(-1)
        self.loss -= float((scale * log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0]).sum())
        known = torch.nn.functional.one_hot(labels.clamp(min=0), p.shape[-1])
        self.gradient += jacobian.T @ (scale[..., None] * (p - known)).reshape(-1)
        flat, classes = p.reshape(-1, p.shape[-1]), p.shape[-1]
        for place, (share, weight) in enumerate(zip(flat, scale.reshape(-1), strict=True)):
            block = jacobian[place * classes : (place + 1) * classes]
            self.matrix += weight * block.T @ (torch.diag(share) - torch.outer(share, share)) @ block
        torch.randn(logits.shape, generator=self.generator, dtype=torch.float64)  # what the weights are probed with
        drawn = torch.multinomial(flat, 1, generator=self.generator).reshape(p.shape[:-1])
        noise = scale.sqrt()[..., None] * (p - torch.nn.functional.one_hot(drawn, classes))
        for _, output in (call for found in calls for call in found):
            output.grad = None  # the rows of the Jacobian went through here
        logits.backward(noise)
        for index, target in enumerate(self.targets):
            for given, output in calls[index]:
                self.inputs[index].append(real_inputs(target, batch, given))
                g = output.grad.reshape(-1, output.shape[-1])
                self.outputs[index] = self.outputs[index] + g.T @ g
        for weight in weights:
            weight.grad = None

    def split(self, vector):
        """A flat vector as one matrix per target, as the parameters lie."""
        sizes = [a * b for a, b in self.shapes]
        return [v.reshape(shape) for v, shape in zip(vector.split(sizes), self.shapes, strict=True)]

    def damping(self):
        blocks = sum(float(a.trace() * s.trace()) for a, s in zip(self.a, self.s, strict=True))
        return 1e-6 * blocks / len(self.gradient)

    def preconditioner(self):
        """The damped inverse of K-FAC's block-diagonal matrix, written out."""
        blocks = []
        for target, a, s in zip(self.targets, self.a, self.s, strict=True):
            block = torch.kron(a, s) if target.kind == "conv1d" else torch.kron(s, a)
            damped = block + 0.1 * block.trace() / len(block) * torch.eye(len(block), dtype=torch.float64)
            blocks.append(torch.linalg.inv(damped))
        return torch.block_diag(*blocks)

    def conjugate_gradients(self, iterations):
        """The textbook's, on flat vectors; returns the step."""
        m = self.preconditioner()
        h = self.matrix + self.damping() * torch.eye(len(self.gradient), dtype=torch.float64)
        x = torch.zeros_like(self.gradient)
        r = -self.gradient
        z = m @ r
        d = z
        for _ in range(iterations):
            alpha = (r @ z) / (d @ h @ d)
            x, after = x + alpha * d, r - alpha * (h @ d)
            new = m @ after
            d = new + (after @ new) / (r @ z) * d
            r, z = after, new
        return x

    def solution(self):
        """The minimiser itself."""
        h = self.matrix + self.damping() * torch.eye(len(self.gradient), dtype=torch.float64)
        return torch.linalg.solve(h, -self.gradient)

    def value(self, x):
        """The quadratic model at a step, by the damped matrix."""
        return float(self.gradient @ x + 0.5 * x @ self.matrix @ x + 0.5 * self.damping() * x @ x)

    def best_along(self, x):
        """What the best multiple of a step takes off the quadratic model; zero where it goes uphill."""
        slope = float(self.gradient @ x)
        return slope**2 / (2 * float(x @ self.matrix @ x)) if slope < 0 else 0.0

    def spectra(self, x):
        """Singular values of S^1/2 D A^1/2 per target."""
        found = []
        for target, a, s, step in zip(self.targets, self.a, self.s, self.split(x), strict=True):
            d = (step.T if target.kind == "conv1d" else step).numpy()
            found.append(np.linalg.svd(root(s.numpy()) @ d @ root(a.numpy()), compute_uv=False))
        return found


def root(matrix):
    """Symmetric square root, its eigenvalues lifted by a thousandth of their mean."""
    values, vectors = np.linalg.eigh(matrix + 1e-3 * np.trace(matrix) / len(matrix) * np.eye(len(matrix)))
    return (vectors * np.sqrt(values)) @ vectors.T
