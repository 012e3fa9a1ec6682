"""Settings that were one thing and are another, in words."""

from dinotrack.differences import differing, flatten, in_words


def test_settings_become_dotted_names() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}


def test_what_differs_is_named_with_both_values() -> None:
    before, now = {"a": 1, "b": 2, "c": None}, {"a": 1, "b": 3, "d": 0}
    assert differing(before, now) == ["b", "c", "d"]
    assert in_words(before, now) == "b was 2, is 3; c was None, is absent; d was absent, is 0"
    assert in_words(before, now, most=1) == "b was 2, is 3" and in_words(now, now) == ""
