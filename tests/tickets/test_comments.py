"""The comments of a ticket, held against a dict: packed by a snapshot at any moment or not, they are the same."""

from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tickets.comments import Comment, Comments
from tickets.events import By
from tickets.permissions import Role

IDS = [UUID(int=n << 64 | n) for n in range(1, 9)]
moments = st.datetimes(timezones=st.just(UTC))
authors = st.builds(By, st.sampled_from(IDS), st.sampled_from(["ada", "bob", None]), st.sampled_from([*Role, None]))
said = st.builds(
    Comment, authors, st.booleans(), moments, st.none() | moments, st.integers(1, 2**31), st.integers(1, 2**31)
)
ADA, BOB = By(IDS[0], "ada", Role.ADMIN), By(IDS[1], "bob", None)
AT = datetime(2026, 1, 1, tzinfo=UTC)


def by(author: By, version: int, *, at: datetime = AT, edited_at: datetime | None = None) -> Comment:
    return Comment(author=author, internal=False, created_at=at, edited_at=edited_at, version=version, said_at=version)


steps = st.lists(st.tuples(st.sampled_from(IDS), said | st.sampled_from(["gone", "kept"])), max_size=40)


def packed(comments: Comments) -> Comments:
    """As they come back from a snapshot."""
    records, those = comments.pack()
    return Comments(packed=records, authors=those)


@given(steps)
def test_comments_are_what_was_set_and_not_deleted_whenever_they_were_packed(
    steps: list[tuple[UUID, Comment | str]],
) -> None:
    plain: dict[UUID, Comment] = {}
    comments = Comments()
    for comment_id, what in steps:
        before, were = comments, dict(plain)
        if isinstance(what, Comment):
            comments, plain[comment_id] = comments.set(comment_id, what), what
        elif what == "kept":
            comments = packed(comments)
        elif comment_id in plain:
            comments = comments.delete(comment_id)
            del plain[comment_id]
        assert before == were, "what was there before is never changed"
        assert comments == plain
        assert len(comments) == len(plain)
        assert {one: comments.get(one) for one in IDS} == {one: plain.get(one) for one in IDS}
    assert packed(packed(comments)) == plain


@given(said)
@example(by(ADA, 1, at=datetime.min.replace(tzinfo=UTC), edited_at=datetime.max.replace(tzinfo=UTC)))
def test_a_comment_is_packed_to_the_microsecond(comment: Comment) -> None:
    assert packed(Comments().set(IDS[0], comment))[IDS[0]] == comment


def test_each_author_is_kept_once_and_so_is_who_comes_later() -> None:
    comments = Comments()
    for n, author in enumerate([ADA, BOB, ADA, ADA]):
        comments = comments.set(IDS[n], by(author, 2 + n))
    bobby = By(BOB.id, "bobby", BOB.role)
    comments = packed(comments).set(IDS[5], by(BOB, 6)).set(IDS[6], by(bobby, 7))
    _, those = comments.pack()
    assert sorted(one.username or "" for one in those) == ["ada", "bob", "bobby"]
    assert [packed(comments)[one].author for one in (IDS[2], IDS[5], IDS[6])] == [ADA, BOB, bobby]


@pytest.mark.parametrize("kept", [lambda comments: comments, packed], ids=["as they are", "packed"])
def test_what_is_not_there_is_not_found_and_cannot_be_deleted(kept: Callable[[Comments], Comments]) -> None:
    comments = kept(Comments().set(IDS[0], by(ADA, 2)))
    assert comments.get(IDS[1]) is None
    assert IDS[1] not in comments
    with pytest.raises(KeyError):
        comments[IDS[1]]
    with pytest.raises(KeyError):
        comments.delete(IDS[1])


def test_what_looks_like_an_id_across_two_packed_comments_is_none() -> None:
    comments = Comments().set(IDS[0], by(ADA, 2)).set(IDS[1], by(ADA, 3))
    records, those = comments.pack()
    found = Comments(packed=records, authors=those)
    windows = [UUID(bytes=records[at : at + 16]) for at in range(len(records) - 15)]
    assert {one for one in windows if one in found} == set(IDS[:2])
    between = next(one for one in windows if one not in found)
    both = packed(comments.set(between, by(BOB, 4)))
    assert both[between].version == 4, "it is found further on"
    assert both.delete(between) == comments
