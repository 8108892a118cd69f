"""Tokens as the views show them: labels, marks, and any object with encode and decode."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ess_widgets.widgets.tokens import CONTINUED, DELIMITER, PLAIN, SPECIAL, encode, indexed


class Bytes:
    """A byte-level tokenizer without offsets."""

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")


class Words:
    """Returns tensors, knows a special token."""

    all_special_ids = (0,)
    words = ("<end>", "past", " future", ".")

    def encode(self, text):
        import torch

        return torch.tensor([[self.words.index(word) for word in text.split("|")]])

    def decode(self, ids):
        return "".join(self.words[i] for i in ids)


def test_bytes_that_make_one_character_share_its_label():
    encoded = encode(Bytes(), "aé漢.")
    assert encoded.labels == ["a", "é", CONTINUED, "漢", CONTINUED, CONTINUED, "."]
    assert encoded.marks[-1] == DELIMITER and encoded.marks[0] == PLAIN


@given(st.text(min_size=1))
def test_every_token_has_a_label_and_the_labels_spell_the_text(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    encoded = encode(Bytes(), text)
    assert len(encoded.labels) == len(encoded.marks) == len(encoded.ids)
    if "\ufffd" not in text and CONTINUED not in text:
        assert "".join(encoded.labels).replace(CONTINUED, "") == text


def test_special_tokens_and_delimiters_are_marked():
    encoded = encode(Words(), "<end>|past| future|.")
    assert encoded.ids == [0, 1, 2, 3]
    assert encoded.marks == [SPECIAL, PLAIN, PLAIN, DELIMITER]


def test_a_fast_tokenizer_shows_the_space_before_a_word(smollm2):
    _, tokenizer = smollm2
    encoded = encode(tokenizer, "<|endoftext|>The past, and\nthe future. ü漢")
    assert encoded.labels[:3] == ["<|endoftext|>", "The", " past"]
    assert encoded.marks[0] == SPECIAL
    assert [
        label for label, mark in zip(encoded.labels, encoded.marks, strict=True) if mark == DELIMITER
    ] == [
        "\n",
        ".",
    ]
    shown = "".join(encoded.labels).replace(CONTINUED, "")
    assert shown == "<|endoftext|>The past, and\nthe future. ü漢"


def test_what_is_not_a_tokenizer_is_refused():
    with pytest.raises(TypeError, match="no encode"):
        encode(object(), "text")

    class Odd:
        def encode(self, text):
            return ["a"]

        def decode(self, ids):
            return ""

    with pytest.raises(TypeError, match="integer ids"):
        encode(Odd(), "text")
    with pytest.raises(ValueError, match="no tokens"):
        encode(Bytes(), "")


def test_positions_without_text_are_labelled_by_name_or_index():
    assert indexed(3) == {"labels": ["0", "1", "2"], "marks": [0, 0, 0], "indexed": True}
    named = indexed(3, ["<|endoftext|>", "a", "."])
    assert named["indexed"] is False and named["marks"] == [SPECIAL, PLAIN, DELIMITER]
