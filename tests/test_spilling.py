"""What a budget has no room for lies on disk, holds the same, and is gone with the process."""

import errno
import os
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dinotrack.spilling
from dinotrack.errors import DinotrackError
from dinotrack.memory import Budget, held
from dinotrack.networks import DeltaDino
from dinotrack.recent import Recent
from dinotrack.spilling import Pile, kept_on_disk, zeros
from dinotrack.structs import Grid

LINE = r"cannot write .*: No space left on device; free space or choose another folder"


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of the unnamed files that are made."""
    folders, make = list[Path](), dinotrack.spilling.unnamed_file

    def noted(folder: Path) -> Any:
        folders.append(folder)
        return make(folder)

    monkeypatch.setattr(dinotrack.spilling, "unnamed_file", noted)
    return folders


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.int32, torch.bool])
def test_zeros_are_written_at_any_place_in_memory_and_on_disk(
    dtype: torch.dtype, tmp_path: Path, made: list[Path]
) -> None:
    place, values = torch.randperm(1000), torch.arange(2000).view(1000, 2).to(dtype)
    for budget in (Budget(folder=tmp_path), Budget(1, tmp_path)):
        found = zeros((1000, 2), dtype, budget)
        assert found.shape == (1000, 2) and found.dtype == dtype and not found.any()
        found[place] = values
        assert torch.equal(found[place], values)
    assert made == [tmp_path] and not any(tmp_path.iterdir())
    assert zeros((0, 2), dtype, Budget(1, tmp_path)).shape == (0, 2)


def test_zeros_on_disk_are_not_held_by_the_process(tmp_path: Path) -> None:
    before = held()
    found = zeros((50_000_000,), torch.int8, Budget(1, tmp_path)).fill_(3)
    assert int(found[::4096].sum()) == 3 * len(found[::4096]) and held() - before < 2e7


@pytest.mark.usefixtures("unguarded")
@pytest.mark.parametrize("reserving", [True, False])
def test_a_full_disk_is_one_line_before_anything_is_written(
    reserving: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of a map that finds no place on the disk would end the process."""
    if reserving:
        monkeypatch.setattr(os, "posix_fallocate", full)
    else:
        monkeypatch.delattr(os, "posix_fallocate")
        monkeypatch.setattr(dinotrack.spilling, "unnamed_file", lambda _: Full())
    with pytest.raises(DinotrackError, match=LINE):
        zeros((1000,), torch.float32, Budget(1, tmp_path))


class Full:
    """A file on a full disk."""

    write = full

    def __enter__(self) -> "Full":
        return self

    def __exit__(self, *_: object) -> None: ...

    def tell(self) -> int:
        return 0


def test_a_system_that_reserves_nothing_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    monkeypatch.setattr(dinotrack.spilling, "BLOCK", 1000)
    found = zeros((1111,), torch.float32, Budget(1, tmp_path))
    assert len(found) == 1111 and not found.any()


def step(delta: DeltaDino, budget: Budget, **options: Any) -> dict[str, Tensor]:
    """Gradients of Delta-DINO in train mode, of which what it keeps for them may lie on disk."""
    rng = torch.Generator().manual_seed(0)
    images, wanted = torch.rand(3, 3, 48, 64, generator=rng), torch.randn(3, 8, 7, 9, generator=rng)
    with kept_on_disk(budget, **options):
        loss = (delta.train()(images, Grid(7.0, 7.0), 7, 9) * wanted).square().sum()
    delta.zero_grad()
    loss.backward()
    return {name: part.grad.clone() for name, part in delta.named_parameters() if part.grad is not None}


def test_what_a_backward_pass_needs_may_lie_on_disk(tmp_path: Path, made: list[Path]) -> None:
    """To the bit, and only where memory is short, and not for tensors that are small."""
    delta = DeltaDino(8, hidden=(8, 16))
    with torch.no_grad():
        for part in delta.parameters():  # the last ones are 0 at the beginning, and gradients before them too
            part.normal_(generator=torch.Generator().manual_seed(part.numel()))
    free = step(delta, Budget(folder=tmp_path), least=0)
    assert len(free) >= 8 and made == []
    kept = step(delta, Budget(1, tmp_path), least=10**9)
    assert made == []
    bounded = step(delta, Budget(1, tmp_path), least=0)
    assert len(made) > 8 and not any(tmp_path.iterdir())
    for name, gradient in free.items():
        assert gradient.abs().max() > 0
        assert torch.equal(bounded[name], gradient) and torch.equal(kept[name], gradient), name


def test_what_is_kept_has_the_strides_that_it_had(tmp_path: Path, made: list[Path]) -> None:
    values = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    cut = torch.rand(6, 8)[:, ::2]
    seen = list[Tensor]()

    class Seen(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
            ctx.save_for_backward(first, second)
            return first.sum() + second.sum()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
            seen.extend(ctx.saved_tensors)
            return gradient.expand(2, 3, 4, 5), None

    with kept_on_disk(Budget(1, tmp_path), least=0):
        loss = Seen.apply(values, cut)
    loss.backward()
    assert len(made) == 2 and torch.equal(seen[0], values) and torch.equal(seen[1], cut)
    assert seen[0].stride() == values.stride() and seen[1].is_contiguous()


def test_what_is_kept_twice_is_written_once(tmp_path: Path, made: list[Path]) -> None:
    """By its values: changed in place between, it is another."""
    values = torch.rand(100, requires_grad=True)
    with kept_on_disk(Budget(1, tmp_path), least=0) as spilling:
        shared = values.exp()  # keeps what it returns, as does the sine what it is given
        loss = shared.sin().sum() + shared.cos().sum()
        assert len(made) == 1 and spilling.bytes == 400
        copied = shared.clone()
        loss = loss + copied.sin().sum()
        copied.add_(1)
        loss = loss + copied.sin().sum()
    assert len(made) == 3 and spilling.bytes == 1200
    loss.backward()
    exp = values.detach().exp()
    expected = exp * (exp.cos() - exp.sin() + exp.cos() + (exp + 1).cos())
    assert values.grad is not None
    torch.testing.assert_close(values.grad, expected)


def test_what_no_step_needs_any_more_is_no_longer_known(tmp_path: Path) -> None:
    values = torch.rand(100, requires_grad=True)
    with kept_on_disk(Budget(1, tmp_path), least=0) as spilling:
        for _ in range(3):
            values.exp()  # its storage is free for the next one
        assert spilling.bytes == 1200 and not spilling.known


def test_a_conjugate_is_not_what_it_is_of(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    made = torch.randn(9, dtype=torch.complex64, generator=rng)
    gradients = list[list[Tensor]]()
    for limit in (None, 1):
        one, two = (torch.ones(9, dtype=torch.complex64, requires_grad=True) for _ in range(2))
        with kept_on_disk(Budget(limit, tmp_path), least=0):
            loss = ((one * made).sum() + 2 * (two * made.conj()).sum()).abs()
        gradients.append(list(torch.autograd.grad(loss, (one, two))))
    assert all(torch.equal(*both) for both in zip(*gradients, strict=True))


def test_where_the_disk_has_no_room_memory_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as there is enough of it for a backward pass."""
    monkeypatch.setattr(os, "posix_fallocate", full)
    values = torch.rand(1000, requires_grad=True)
    for room, fits in ((4 * 4000 - 1, False), (4 * 4000, True)):
        monkeypatch.setattr(Budget, "room", lambda *_, room=room: room)
        with kept_on_disk(Budget(folder=tmp_path), least=0) as spilling:
            if not fits:
                with pytest.raises(DinotrackError, match=LINE):
                    values.exp()
                continue
            values.exp().sum().backward()
        assert spilling.bytes == 0 and values.grad is not None


def test_a_forward_pass_that_nothing_follows_leaves_nothing(tmp_path: Path) -> None:
    """Without it each would keep itself alive."""
    kept = list[weakref.ref[Tensor]]()
    for limit in (None, 1):
        values = torch.rand(100, requires_grad=True)
        with kept_on_disk(Budget(limit, tmp_path), least=0):
            made = values.exp()
            loss = made.sin().sum()
        kept.append(weakref.ref(made))
        del made, loss
    assert [each() for each in kept] == [None, None]


def test_of_what_is_repeated_one_is_written(tmp_path: Path) -> None:
    one, many = torch.rand(20, 1, requires_grad=True), torch.rand(20, 50, requires_grad=True)
    with kept_on_disk(Budget(1, tmp_path), least=0) as spilling:
        loss = (one.exp().expand(20, 50) * many.exp()).sum()
    assert spilling.bytes == 2 * 20 * 4 + 20 * 50 * 4  # of the column twice, since its strides are others
    loss.backward()
    assert one.grad is not None and many.grad is not None
    torch.testing.assert_close(one.grad, (one.exp() * many.exp().sum(1, keepdim=True)).detach())
    torch.testing.assert_close(many.grad, (one.exp() * many.exp()).detach())


def parts() -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    sizes = [(5,), (0, 2), (7, 2), (3,), (4, 2)]
    return [
        (100 * torch.rand(size, generator=rng)).to(torch.int32 if len(size) == 1 else torch.float32) for size in sizes
    ]


@pytest.mark.parametrize(("memory", "files"), [(None, 0), (1e9, 0), (70.0, 1), (0.0, 1)])
def test_a_pile_gives_back_what_was_put_on_it(
    memory: float | None, files: int, tmp_path: Path, made: list[Path]
) -> None:
    pile = Pile(Budget(folder=tmp_path), memory)
    for part in parts():
        pile.add(part)
    assert len(pile) == 5 and len(made) == files
    for index, part in enumerate(parts()):
        assert torch.equal(pile[index], part) and pile[index].dtype == part.dtype
        pile.drop(index)
        assert not len(pile[index])


def test_a_pile_on_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dinotrack.spilling, "unnamed_file", lambda _: Full())
    with pytest.raises(DinotrackError, match=LINE):
        Pile(Budget(folder=tmp_path), 0.0).add(torch.ones(3))


@pytest.mark.parametrize(
    ("room", "expected"),
    [(4.0, [0, 1, 2, 3]), (2.0, [0, 1, 2, 1, 0, 2, 3]), (0.0, [0, 1, 0, 2, 1, 0, 2, 2, 3])],
)
def test_what_was_asked_for_last_is_known(room: float, expected: list[int]) -> None:
    made = list[int]()

    def make(number: int) -> Tensor:
        made.append(number)
        return torch.full((1,), float(number))

    known = Recent[Tensor](4 * room)
    for number in (0, 1, 0, 2, 1, 0, 2, 2, 3):
        assert known.get(number, make).tolist() == [number]
    assert len(known.kept) == min(room, 4)
    assert made == expected
