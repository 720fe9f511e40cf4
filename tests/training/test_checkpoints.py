import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from training_world import Tiny, course, curve, optimizer, train_tiny

from distill.core.errors import UserError
from distill.training import checkpoints
from distill.training.checkpoints import Checkpoints


def state(scale=1.0):
    params = jax.tree.map(lambda leaf: leaf * scale, Tiny().init(jax.random.key(0)))
    return params, optimizer().transformation().init(params)


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


def fill(directory, steps):
    with Checkpoints(directory) as saved:
        for step in steps:
            saved.save(step, *state(1.0 + step))


def test_what_is_saved_comes_back(tmp_path):
    fill(tmp_path, [0, 5])
    with Checkpoints(tmp_path) as saved:
        step, params, inner = saved.restore(*state())
    assert step == 5
    assert same((params, inner), state(6.0))
    assert same(checkpoints.load_params(tmp_path, 0), state(1.0)[0])


def test_buffers_may_be_donated_while_a_save_is_under_way(tmp_path):
    params, inner = state()
    expected = jax.tree.map(np.array, params)
    with Checkpoints(tmp_path) as saved:
        saved.save(0, params, inner)
        jax.block_until_ready(
            jax.jit(lambda tree: jax.tree.map(lambda x: x * 0, tree), donate_argnums=0)(params)
        )
    assert same(jax.tree.map(np.array, checkpoints.load_params(tmp_path, 0)), expected)


def test_only_the_newest_optimizer_states_stay(tmp_path):
    fill(tmp_path, range(6))
    assert checkpoints.steps(tmp_path) == [0, 1, 2, 3, 4, 5]
    assert sorted(path.name for path in (tmp_path / "optimizer").iterdir()) == ["4", "5"]


def test_retention_keeps_the_last_and_the_multiples(tmp_path):
    with Checkpoints(tmp_path, keep_last=2, keep_every=4) as saved:
        for step in range(8):
            saved.save(step, *state())
    assert checkpoints.steps(tmp_path) == [0, 4, 6, 7]


def test_retention_keeps_the_best_beside_the_newest(tmp_path):
    losses = [None, 5.0, 2.0, 4.0, 1.0, 3.0, 6.0]
    for half in (losses[:4], losses):  # what is best is known after a restart too
        with Checkpoints(tmp_path, keep_best=2) as saved:
            for step in range(len(checkpoints.steps(tmp_path)) and 4, len(half)):
                saved.save(step, *state(), loss=half[step])
    assert checkpoints.steps(tmp_path) == [2, 4, 6]
    with Checkpoints(tmp_path) as saved:
        assert saved.restore(*state())[0] == 6


def test_run_keeps_the_checkpoints_of_the_lowest_loss(tmp_path):
    train_tiny(tmp_path, keep={"keep_best": 1}, course=course(steps=9, save_every=2))
    assert checkpoints.steps(tmp_path / "checkpoints")[-1] == 9
    assert len(checkpoints.steps(tmp_path / "checkpoints")) <= 2


def test_checkpoints_may_lie_elsewhere_and_all_who_read_find_them(tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    checkpoints.place(run, str(other))
    fill(run, [0, 5])
    assert sorted(path.name for path in run.iterdir()) == ["location.txt"]
    assert (other / "params" / "5").is_dir()
    assert checkpoints.steps(run) == checkpoints.steps(other) == [0, 5]
    assert same(checkpoints.load_params(run, 5), state(6.0)[0])
    checkpoints.place(run, str(other))
    with pytest.raises(UserError, match=r"checkpoints of .* at gs://bucket/run, got those at"):
        checkpoints.place(run, "gs://bucket/run")


def test_an_address_is_kept_as_it_is(tmp_path):
    checkpoints.place(tmp_path, "gs://bucket/run/checkpoints")
    found = checkpoints.located(tmp_path) / "params"
    assert str(found) == "gs://bucket/run/checkpoints/params"
    assert str(checkpoints.located("s3://bucket/run")) == "s3://bucket/run"


def test_half_of_a_first_checkpoint_is_no_checkpoint(tmp_path):
    fill(tmp_path, [0])
    shutil.rmtree(tmp_path / "params" / "0")
    with Checkpoints(tmp_path) as saved:
        assert saved.restore(*state()) is None
        saved.save(0, *state())
    assert checkpoints.steps(tmp_path) == [0]


def cut_short(folder):
    for path in (path for path in folder.rglob("*") if path.is_file()):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_arrays(folder):
    for path in (path for path in folder.rglob("d/*") if path.is_file()):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwrite_arrays(folder):
    for path in (path for path in folder.rglob("d/*") if path.is_file()):
        path.write_bytes(b"\x55" * path.stat().st_size)


def remove_arrays(folder):
    for path in [path for path in folder.rglob("d") if path.is_dir()]:
        shutil.rmtree(path)


def remove_metadata(folder):
    for path in list(folder.rglob("_METADATA")):
        path.unlink()


@pytest.mark.parametrize("item", ["params", "optimizer"])
@pytest.mark.parametrize(
    "damage", [cut_short, cut_arrays, overwrite_arrays, remove_arrays, remove_metadata]
)
def test_damaged_newest_checkpoint_is_skipped_with_a_line(tmp_path, caplog, item, damage):
    fill(tmp_path, [0, 4, 8])
    damage(tmp_path / item / "8")
    with caplog.at_level(logging.WARNING), Checkpoints(tmp_path) as saved:
        step, params, _ = saved.restore(*state())
    assert step == 4 and same(params, state(5.0)[0])
    assert "checkpoint 8 is damaged and skipped" in caplog.text
    assert checkpoints.steps(tmp_path) == [0, 4]


def test_run_goes_on_from_before_a_damaged_checkpoint_and_ends_the_same(tmp_path):
    whole = train_tiny(tmp_path / "whole")
    train_tiny(tmp_path / "cut")
    remove_arrays(tmp_path / "cut" / "checkpoints" / "params" / "12")
    assert same(train_tiny(tmp_path / "cut"), whole)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")


def test_nothing_is_begun_again_where_all_is_damaged(tmp_path):
    fill(tmp_path, [0, 4])
    for step in ("0", "4"):
        cut_short(tmp_path / "optimizer" / step)
    with (
        Checkpoints(tmp_path) as saved,
        pytest.raises(UserError, match=r"only damaged ones of steps \[4, 0\]"),
    ):
        saved.restore(*state())
    assert checkpoints.steps(tmp_path) == [0, 4]


def test_damaged_parameters_are_refused_by_name(tmp_path):
    fill(tmp_path, [0])
    cut_arrays(tmp_path / "params" / "0")
    with pytest.raises(UserError, match=r"expected checkpoint 0 in .* got a damaged one"):
        checkpoints.load_params(tmp_path, 0)


def test_missing_step_is_refused(tmp_path):
    fill(tmp_path, [0])
    with pytest.raises(UserError, match=r"none of step 3; use one of \[0\]"):
        checkpoints.load_params(tmp_path, 3)


def test_checkpoint_of_another_shape_is_refused_and_kept(tmp_path):
    fill(tmp_path, [0, 4])
    params, inner = state()
    params["head"]["kernel"] = jnp.zeros((8, 99))
    with Checkpoints(tmp_path) as saved, pytest.raises(UserError, match=r"head/kernel.*\(8, 99\)"):
        saved.restore(params, inner)
    assert checkpoints.steps(tmp_path) == [0, 4]


def test_parameters_come_back_in_the_sharding_that_is_asked_for(tmp_path):
    fill(tmp_path, [0])
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:1]), ("data",)), PartitionSpec())
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state()[0]
    )
    found = checkpoints.load_params(tmp_path, 0, like=like)
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(found))


def test_no_directory_has_no_steps(tmp_path):
    assert checkpoints.steps(tmp_path / "none") == []
