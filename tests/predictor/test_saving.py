from __future__ import annotations

import json

import numpy as np
import pytest

from optllm_router._errors import InvalidDataError
from optllm_router.predictor import load_predictor, make_predictor, save_predictor


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "predictor.npz"
    predictor = make_predictor(n_candidates=2)
    predictor.fit([f"text {i}" for i in range(30)], np.eye(2)[np.arange(30) % 2])
    save_predictor(predictor, path)
    return path


def rewrite(path, change):
    with np.load(path) as file:
        arrays = dict(file)
    change(arrays)
    np.savez(path, **arrays)


def test_holds_plain_arrays_only_and_no_text(saved):
    with np.load(saved, allow_pickle=False) as file:
        assert all(file[name].dtype.kind in "fiub" for name in file.files)
    assert b"text 7" not in saved.read_bytes()


def test_refuses_other_files(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    with pytest.raises(InvalidDataError, match=r"notes\.txt is not a saved predictor"):
        load_predictor(path)


@pytest.mark.parametrize("keep", [0, 10, 1_000, 50_000])
def test_refuses_a_truncated_file(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(InvalidDataError, match="damaged"):
        load_predictor(saved)


def test_refuses_flipped_bytes(saved):
    content = bytearray(saved.read_bytes())
    content[len(content) // 2] ^= 0xFF
    saved.write_bytes(content)
    with pytest.raises(InvalidDataError, match="damaged"):
        load_predictor(saved)


@pytest.mark.parametrize("name", ["header", "base", "features.words.table", "model.values"])
def test_refuses_a_file_with_a_missing_array(saved, name):
    rewrite(saved, lambda arrays: arrays.pop(name))
    with pytest.raises(InvalidDataError, match=name.rpartition(".")[2]):
        load_predictor(saved)


@pytest.mark.parametrize("predictor", ["auto", "bagged_forest"])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("child", lambda child: child + len(child)),
        ("child", lambda child: child - 1),
        ("child", lambda child: np.maximum(child - np.arange(len(child)) % 2, 0)),
        ("child", lambda child: child[:-1]),
        ("feature", lambda feature: feature + 1_000),
        ("feature", lambda feature: -1 - feature),
        ("threshold", lambda threshold: threshold[:-1]),
        ("roots", lambda roots: roots[:0]),
        ("roots", lambda roots: roots + 1),
        ("depth", lambda depth: depth + 1_000_000_000),
        ("values", lambda values: values[: len(values) // 2]),
    ],
)
def test_refuses_trees_that_lead_astray(tmp_path, predictor, name, change):
    """Else compiled code would read whatever lies beyond the arrays, or never come back."""
    path = tmp_path / "predictor.npz"
    fitted = make_predictor(predictor, n_candidates=2)
    fitted.fit([f"text {i} {i % 7}" for i in range(30)], np.eye(2)[np.arange(30) % 2])
    save_predictor(fitted, path)
    key = f"model.{name}"
    rewrite(path, lambda arrays: arrays.update({key: change(arrays[key])}))
    with pytest.raises(InvalidDataError, match="damaged"):
        load_predictor(path)


def test_refuses_another_format(saved):
    def change(arrays):
        header = json.loads(arrays["header"].tobytes())
        header["format"] = 99
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)

    rewrite(saved, change)
    with pytest.raises(InvalidDataError, match="format 99"):
        load_predictor(saved)


def test_refuses_a_header_that_is_not_json(saved):
    rewrite(saved, lambda arrays: arrays.update(header=np.zeros(3, dtype=np.uint8)))
    with pytest.raises(InvalidDataError, match="damaged"):
        load_predictor(saved)


def header_with(**changes):
    def change(arrays):
        header = {**json.loads(arrays["header"].tobytes()), **changes}
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)

    return change


@pytest.mark.parametrize(
    "change",
    [
        header_with(n_candidates=0),
        header_with(n_candidates=3),
        header_with(n_candidates=10**12),
        header_with(name="nope"),
        header_with(name=["a"]),
        header_with(prior=[0.1, 3.0]),
        header_with(seed=-1),
        header_with(fitted=False),
        lambda arrays: arrays.update(header=np.frombuffer(b"[" * 100_000, dtype=np.uint8)),
        lambda arrays: arrays.update(base=arrays["base"] * np.nan),
        lambda arrays: arrays.update(base=arrays["base"] + 2),
        lambda arrays: arrays.update(base_std=-1 - arrays["base_std"]),
        lambda arrays: arrays.update({"model.values": arrays["model.values"] + np.inf}),
        lambda arrays: arrays.update({"model.factors": arrays["model.factors"] * 1j}),
        lambda arrays: arrays.update({"recent.n_seen": np.array(-5)}),
        lambda arrays: arrays.update({"recent.candidates": np.array([7, -9])}),
        lambda arrays: arrays.update({"recent.residuals": np.array([0.5])}),
        lambda arrays: arrays.update({"recent.inertia": np.zeros(5)}),
    ],
)
def test_whatever_is_wrong_with_a_file_it_is_refused_by_one_error(saved, change):
    rewrite(saved, change)
    with pytest.raises(InvalidDataError, match=r"predictor\.npz is not a saved predictor"):
        load_predictor(saved)


@pytest.mark.parametrize("name", ["model.rates", "model.rates_std"])
def test_refuses_clusters_without_a_rate(tmp_path, name):
    path = tmp_path / "predictor.npz"
    fitted = make_predictor("clusters", n_candidates=2)
    fitted.fit([f"text {i} {i % 7}" for i in range(30)], np.eye(2)[np.arange(30) % 2])
    save_predictor(fitted, path)
    rewrite(path, lambda arrays: arrays.update({name: arrays[name][:-1]}))
    with pytest.raises(InvalidDataError, match="damaged"):
        load_predictor(path)


def test_damage_of_compressed_bytes_is_refused(saved):
    with np.load(saved) as file:
        np.savez_compressed(saved, **dict(file))
    content = saved.read_bytes()
    for at in range(40, len(content), len(content) // 40):
        saved.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        try:
            loaded = load_predictor(saved)
        except InvalidDataError:
            continue
        assert np.isfinite(loaded.predict(["a"]).p).all()


def test_a_save_that_fails_leaves_the_file_as_it_was(saved, monkeypatch):
    before = saved.read_bytes()

    def torn(file, **arrays):
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", torn)
    with pytest.raises(KeyboardInterrupt):
        save_predictor(make_predictor(n_candidates=2), saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_missing_file_is_the_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_predictor(tmp_path / "nothing.npz")
