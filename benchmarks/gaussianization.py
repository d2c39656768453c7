"""How Gaussian is F(w)? Squared norms and likelihoods of the flow prior and of simpler transforms.

    python -m benchmarks.gaussianization --plain FILE

draws 5,000 fresh w = M(z) and writes a table and a histogram of squared norms beside the
chi-square distribution (Gheisari & Genovesio, figure 2). FILE is a prior fitted without noise:

    python -m stylesr_jax.fit_prior --noise 0 --floor 1e-4 --log-scale-bound 1 --steps 1024 \\
        --radial --out FILE
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.common import load_pyplot
from stylesr_jax.generators.base import PULSE_SLOPE, Generator
from stylesr_jax.loading import load_generator
from stylesr_jax.priors import flow
from stylesr_jax.priors.whitening import draw_w, fit_whitening
from stylesr_jax.runs.records import write_json
from stylesr_jax.runtime import files, weights
from stylesr_jax.runtime.machine import describe_machine
from stylesr_jax.runtime.startup import configure
from stylesr_jax.runtime.weights import DEFAULT

RESULTS = Path(__file__).resolve().parent / "results" / "gaussianization"
MOMENT_DRAWS = 50_000  # for the Gaussians that the flow is compared with
FULL_FLOOR = 1e-8  # of eigenvalues, for a whitening that is as good as unfloored in float32


def squared_norm(x: Array) -> np.ndarray:
    """||x||^2 over the last axis."""
    return np.asarray(jnp.sum(jnp.square(x), axis=-1))


def gaussian_nll(train: np.ndarray, test: np.ndarray) -> float:
    """Mean of -log p over `test` of the Gaussian with the moments of `train`, in nats."""
    covariance = np.cov(train.T)
    centred = test - train.mean(axis=0)
    mahalanobis = np.einsum("ni,ni->n", centred @ np.linalg.inv(covariance), centred)
    _, log_det = np.linalg.slogdet(covariance)
    return 0.5 * float(mahalanobis.mean() + log_det + test.shape[1] * np.log(2 * np.pi))


def diagonal_nll(train: np.ndarray, test: np.ndarray) -> float:
    """The same for the Gaussian with independent coordinates."""
    variance = train.var(axis=0)
    scaled = np.square(test - train.mean(axis=0)) / variance
    return 0.5 * float(np.mean(np.sum(scaled + np.log(2 * np.pi * variance), axis=1)))


def compare_likelihoods(key: Array, prior: flow.Prior, generator: Generator) -> dict[str, float]:
    """Held-out -log p in the prior's whitened coordinates, of draws with the prior's own noise.

    Returns:
        "flow"; "full": a Gaussian with full covariance; "diagonal": PULSE's, with independent
        coordinates of leaky_relu(w, 5). All three are densities of the same variable.
    """
    train_key, test_key = jax.random.split(key)
    noise, whitening = prior.config.noise, prior.whitening
    train = flow.noisy_draws(train_key, generator, whitening, noise, MOMENT_DRAWS)
    test = flow.noisy_draws(test_key, generator, whitening, noise, 5000)
    inverse = np.asarray(whitening["inverse"], np.float64)
    wide = [np.asarray(u, np.float64) for u in (train, test)]
    pulse = [u @ inverse for u in wide]  # the axes of leaky_relu(w, 5)
    return {
        "flow": -float(jnp.mean(prior.log_prob_whitened(test))),
        "full": gaussian_nll(*wide),
        "diagonal": diagonal_nll(*pulse) + float(whitening["log_det"]),
    }


def gradient_norms(prior: flow.Prior, generator: Generator) -> dict[str, float]:
    """Norm of the gradient of log p in whitened coordinates, where searches begin and stray."""
    direction = jax.random.normal(jax.random.key(1), (generator.w_dim,))
    points = {
        "mean w": prior.whiten(generator.statistics["w_mean"]),
        "origin": jnp.zeros(generator.w_dim),
        "5 standard deviations out": 5.0 * direction,
    }
    gradient = jax.jit(jax.grad(flow.Prior.log_prob_whitened, argnums=1))
    return {name: float(jnp.linalg.norm(gradient(prior, u))) for name, u in points.items()}


def measure(
    key: Array,
    generator: Generator,
    embedded: flow.Prior,
    plain: flow.Prior | None,
    *,
    draws: int,
) -> dict[str, np.ndarray]:
    """Squared norms (draws,) of every transform, on the same fresh w."""
    draw_key, noise_key, moment_key = jax.random.split(key, 3)
    w = draw_w(draw_key, generator, draws)
    linear = jnp.where(w < 0, PULSE_SLOPE * w, w)
    statistics = generator.statistics
    full = fit_whitening(moment_key, generator, floor=FULL_FLOOR)
    u = embedded.whiten(w)
    noisy = u + embedded.config.noise * jax.random.normal(noise_key, u.shape)
    transform = jax.jit(flow.Prior.gaussianize_and_log_prob_whitened)
    norms = {}
    if plain is not None:
        clean = plain.whiten(w)
        norms["flow, fitted without noise"] = squared_norm(transform(plain, clean)[0])
        if plain.config.radial:
            blocks = flow.without_radial(plain)
            name = "the same before its radial scaling"
            norms[name] = squared_norm(transform(blocks, clean)[0])
    norms["embedded flow, draws with its own noise"] = squared_norm(transform(embedded, noisy)[0])
    norms["embedded flow, clean draws"] = squared_norm(transform(embedded, u)[0])
    norms["full-covariance whitening"] = squared_norm((linear - full["mean"]) @ full["matrix"])
    norms["PULSE's transform"] = squared_norm(
        (linear - statistics["pulse_mean"]) / statistics["pulse_std"]
    )
    norms["raw w, from its mean"] = squared_norm(w - statistics["w_mean"])
    return norms


def draw_histogram(path: Path, norms: dict[str, np.ndarray], dim: int) -> None:
    """Histograms of squared norms over the chi-square density with `dim` degrees, as a PNG.

    Raises:
        UserError: matplotlib is not installed.
    """
    pyplot = load_pyplot()

    end = 2.2 * dim
    bins = np.linspace(0, end, 133)
    figure, axes = pyplot.subplots(figsize=(10, 5.5), layout="constrained")
    t = np.linspace(1, end, 2000)
    log_chi2 = (dim / 2 - 1) * np.log(t / 2) - t / 2
    chi2 = np.exp(log_chi2 - log_chi2.max())
    chi2 /= chi2.sum() * (t[1] - t[0])
    axes.fill_between(t, chi2, color="0.82", label=f"chi-square, {dim} degrees")
    for name, values in norms.items():
        share = np.histogram(values, bins)[0] / (len(values) * (bins[1] - bins[0]))
        label = f"{name}: {values.mean():.0f} ± {values.std():.0f}"
        axes.stairs(share, bins, label=label, linewidth=1.6)
    axes.set_xlim(0, end)
    # The raw latents' narrow peak may be cut off; the others decide the scale.
    axes.set_ylim(0, 1.35 * chi2.max())
    axes.set_xlabel("squared norm")
    axes.set_ylabel("density")
    axes.set_title(f"{len(next(iter(norms.values()))):,} mapped latents after each transform")
    axes.legend(frameon=False, loc="upper right")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def write_table(path: Path, report: dict[str, Any]) -> None:
    """The figures as Markdown."""
    machine = report["machine"]
    lines = [
        "# Gaussianization",
        "",
        f"{report['draws']:,} fresh draws of `{report['generator']}`; {machine['date']}, "
        f"{machine['machine']}, jax {machine['versions']['jax']}. "
        f"Command: `{report['command']}`.",
        "",
        "| squared norm after | mean | standard deviation |",
        "|---|---|---|",
        *(f"| {n} | {v['mean']:.1f} | {v['std']:.1f} |" for n, v in report["norms"].items()),
        "",
        "![histogram](histogram.png)",
        "",
        "Held-out negative log-likelihood in nats, a density in the prior's whitened coordinates, "
        "of draws with the prior's own noise:",
        "",
        "| prior | noise | steps | flow | full-covariance Gaussian | PULSE's diagonal Gaussian |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {v['noise']} | {v['steps']} | {v['flow']:.1f} | {v['full']:.1f} "
            f"| {v['diagonal']:.1f} |"
            for name, v in report["likelihoods"].items()
        ),
        "",
        "Mean log p of the embedded prior, in the same coordinates:",
        "",
        "| data | jittered by 0.2 | origin | mean w | noise of standard deviation 5 |",
        "|---|---|---|---|---|",
        "| {log_p_data:.1f} | {log_p_jittered:.1f} | {log_p_origin:.4g} | {log_p_mean_w:.4g} "
        "| {log_p_far:.4g} |".format(**report["figures"]),
        "",
        "Norm of its gradient: "
        + "; ".join(f"{name} {value:.4g}" for name, value in report["gradient_norms"].items())
        + ".",
    ]
    path.write_text("\n".join(lines) + "\n")


def total_steps(header: dict[str, Any]) -> int:
    """Steps of a prior's fit and of those that it was started from."""
    earlier = header.get("start")
    return header["fit"]["steps"] + (total_steps(earlier) if earlier else 0)


def main() -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="How Gaussian the flow makes mapped latents."
    )
    parser.add_argument("--generator", default=DEFAULT, metavar="NAME|PATH")
    parser.add_argument("--prior", type=Path, help="the prior (default: the embedded one)")
    parser.add_argument("--plain", type=Path, help="a prior fitted with --noise 0")
    parser.add_argument("--draws", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="default: results/ if --plain is given")
    args = parser.parse_args()
    # Without a plain flow the table is not whole: the kept one stays.
    args.out = args.out or (RESULTS if args.plain else files.cache_dir() / "gaussianization")
    configure()
    generator = load_generator(args.generator)
    flows = {"embedded": flow.find_prior(generator, args.prior)}
    if args.plain:
        flows["without noise"] = flow.find_prior(generator, args.plain)
    priors = {name: flow.prior_from_file(file)[0] for name, file in flows.items()}
    embedded, plain = priors["embedded"], priors.get("without noise")
    norm_key, likelihood_key, figure_key = jax.random.split(jax.random.key(args.seed), 3)
    norms = measure(norm_key, generator, embedded, plain, draws=args.draws)
    likelihoods = {
        name: {
            "noise": prior.config.noise,
            "steps": total_steps(weights.read_header(flows[name])),
            **compare_likelihoods(likelihood_key, prior, generator),
        }
        for name, prior in priors.items()
    }
    report = {
        "command": " ".join(
            ["python -m benchmarks.gaussianization", *(Path(text).name for text in sys.argv[1:])]
        ),
        "generator": generator.name,
        "draws": args.draws,
        "seed": args.seed,
        "machine": describe_machine(),
        "norms": {n: {"mean": float(v.mean()), "std": float(v.std())} for n, v in norms.items()},
        "likelihoods": likelihoods,
        "figures": jax.tree.map(float, flow.prior_figures(figure_key, embedded, generator)),
        "gradient_norms": gradient_norms(embedded, generator),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "table.json", report)
    write_table(args.out / "table.md", report)
    draw_histogram(args.out / "histogram.png", norms, generator.w_dim)
    print((args.out / "table.md").read_text())
    print(json.dumps(report["gradient_norms"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
