"""Fitting a prior: it learns, it can be killed and resumed, and the command behaves."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import KEPT

from stylesr_jax import fit_prior as command
from stylesr_jax.cli import fit as work
from stylesr_jax.errors import UserError
from stylesr_jax.priors import autoregressive, flow
from stylesr_jax.priors import fit as fit_prior
from stylesr_jax.runtime import weights
from toy_mapping import toy_generator
from untrained import with_notes

KEY = jax.random.key(11)
TINY = autoregressive.FlowConfig(dim=3, blocks=2, width=16, noise=0.1)


def run(*, steps: int = 64, key=KEY, generator=None, chunk: int = 8, **options):
    return fit_prior.fit(
        key,
        toy_generator() if generator is None else generator,
        flow_config=TINY,
        fit_config=flow.FitConfig(steps=steps, batch=64, learning_rate=1e-2, chunk=chunk),
        whitening_draws=2000,
        **options,
    )


@pytest.fixture(scope="module")
def fitted() -> tuple[flow.Prior, list[fit_prior.Progress]]:
    """A prior after 400 steps, and what was reported of them."""
    seen: list[fit_prior.Progress] = []
    return run(steps=400, report_every=100, report=seen.append), seen


def test_fit_lowers_the_held_out_loss_and_gaussianizes(fitted):
    generator = toy_generator()
    prior, seen = fitted
    assert [p.step for p in seen] == [104, 200, 304, 400]
    assert seen[-1].seconds_left == 0
    u = flow.noisy_draws(jax.random.key(1), generator, prior.whitening, 0.1, 5000)
    identity = autoregressive.init_flow(KEY, TINY)
    loss = jax.jit(lambda flow_: flow.negative_log_likelihood(flow_, TINY, u))
    before, after = float(loss(identity)), float(loss(prior.flow))
    assert after < before - 0.2
    assert after == pytest.approx(seen[-1].held_out, abs=0.1)
    z, _ = jax.jit(prior.gaussianize_and_log_prob_whitened)(u)
    norm2 = np.square(np.asarray(z)).sum(axis=1)
    assert norm2.mean() == pytest.approx(3, abs=0.3)


@pytest.mark.slow
def test_same_key_same_prior_other_key_other_prior():
    first, again, other = run(), run(), run(key=jax.random.key(12))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    biases = [p.flow["block0"]["shift"]["bias"] for p in (first, other)]
    assert np.abs(biases[0] - biases[1]).max() > 0


def test_interrupted_fit_resumes_to_the_same_prior(tmp_path):
    checkpoint = tmp_path / "fit.checkpoint"
    whole = run()

    def interrupt(progress: fit_prior.Progress) -> None:
        if progress.step >= 24:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=checkpoint, report_every=8, report=interrupt)
    _, header = weights.load(checkpoint)
    assert header["kind"] == "prior-checkpoint"
    seen: list[int] = []
    resumed = run(
        checkpoint=checkpoint, resume=True, report_every=8, report=lambda p: seen.append(p.step)
    )
    assert seen[0] == 32  # it did not begin anew
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


def test_fit_goes_on_from_another_prior(fitted):
    first, _ = fitted
    seen: list[fit_prior.Progress] = []
    second = run(steps=8, start=first, key=jax.random.key(13), report=seen.append)
    fresh: list[fit_prior.Progress] = []
    run(steps=8, key=jax.random.key(13), report=fresh.append)
    assert seen[-1].held_out < fresh[-1].held_out - 0.2
    jax.tree.map(np.testing.assert_array_equal, second.whitening, first.whitening)
    with pytest.raises(UserError, match="other sizes"):
        fit_prior.fit(
            KEY,
            toy_generator(),
            flow_config=autoregressive.FlowConfig(dim=3, blocks=2, width=8),
            fit_config=flow.FitConfig(steps=8),
            start=first,
        )


def test_checkpoints_are_written_at_their_interval(tmp_path):
    checkpoint = tmp_path / "fit.checkpoint"
    steps_on_disk: list[int] = []

    def look(progress: fit_prior.Progress) -> None:
        if checkpoint.exists():
            state, _ = weights.load(checkpoint)
            last = sorted(state["state"])[-1]
            steps_on_disk.append(int(state["state"][last]))

    run(checkpoint=checkpoint, checkpoint_every=16, report_every=8, report=look)
    assert steps_on_disk == [16, 16, 32, 32, 48, 48]


def test_checkpoint_of_another_fit_is_refused(tmp_path):
    checkpoint = tmp_path / "fit.checkpoint"
    run(steps=8, checkpoint=checkpoint)
    with pytest.raises(UserError, match="--resume"):
        run(steps=8, checkpoint=checkpoint)
    with pytest.raises(UserError, match="another fit"):
        run(steps=16, checkpoint=checkpoint, resume=True)
    weights.save(checkpoint, {"a": np.zeros(1)}, {"kind": "generator"})
    with pytest.raises(UserError, match="not a checkpoint"):
        run(steps=8, checkpoint=checkpoint, resume=True)


def test_a_diverging_fit_says_what_to_do():
    config = flow.FitConfig(steps=400, batch=16, learning_rate=1e30, chunk=8)
    with pytest.raises(UserError, match="--learning-rate"):
        fit_prior.fit(
            KEY, toy_generator(), flow_config=TINY, fit_config=config, whitening_draws=1000
        )


@pytest.mark.slow  # three processes; `fit` is interrupted and resumed in one above
def test_command_killed_and_resumed_writes_a_prior_that_is_found(tmp_path):
    """SIGKILL in the middle, --resume, against one uninterrupted run of the same command."""
    environment = os.environ | {"STYLESR_CACHE": str(tmp_path / "cache")}
    command = [
        *(sys.executable, "-m", "stylesr_jax.fit_prior", "--blocks", "1", "--width", "8"),
        *("--steps", "640", "--batch", "8", "--whitening-draws", "2000"),
        *("--checkpoint-every", "16"),
    ]
    killed, whole = tmp_path / "killed.safetensors", tmp_path / "whole.safetensors"
    checkpoint = tmp_path / "killed.safetensors.checkpoint"
    with subprocess.Popen(
        [*command, "--out", str(killed)], env=environment, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 300
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert checkpoint.exists()
    assert not killed.exists()
    for out, extra in ((killed, ["--resume"]), (whole, [])):
        result = subprocess.run(
            [*command, "--out", str(out), *extra], env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        assert "held out" in result.stderr
    assert not checkpoint.exists()
    (first, header), (second, _) = weights.load(killed), weights.load(whole)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert header["noise"] == 0.5
    assert header["fit"]["steps"] == 640
    assert np.isfinite(header["figures"]["nll"])
    assert json.dumps(header)  # nothing in it but plain values


def test_mistakes_end_in_one_line_and_code_two(tmp_path, capsys):
    assert command.main(["--generator", "no-such-generator"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    for bad in (["--noise", "-1"], ["--steps", "0"], ["--learning-rate", "nan"], ["--batch", "x"]):
        with pytest.raises(SystemExit) as stop:
            command.main(bad)
        assert stop.value.code == 2


def test_what_the_converter_noted_is_said_once(tiny_files, tmp_path, monkeypatch, capsys):
    def stopped(*_, **__):
        raise UserError("stopped")

    monkeypatch.setenv("STYLESR_CACHE", str(KEPT))
    monkeypatch.setattr(work, "fit", stopped)
    noted = with_notes(tiny_files["generator"], tmp_path, ["fixed noise maps were drawn"])
    fit = ("--generator", str(noted), "--out", str(tmp_path / "prior.safetensors"))
    assert command.main([*fit]) == 2
    found = capsys.readouterr()
    assert found.err.splitlines() == ["note: fixed noise maps were drawn", "error: stopped"]
    assert found.out == ""
    assert command.main([*fit, "--quiet"]) == 2
    assert capsys.readouterr().err == "error: stopped\n"


def test_help_does_not_import_jax():
    code = (
        "import sys; from stylesr_jax import fit_prior\n"
        "try: fit_prior.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'jax', 'distrax', 'numpy'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--noise" in result.stdout
