import json

import jax.numpy as jnp
import numpy as np
import pytest

from workbench.exchange import safetensors


def test_what_is_written_is_read_bit_for_bit_and_mapped(tmp_path):
    arrays = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.array([1.5, -0.0, np.nan], jnp.bfloat16),
        "none": np.zeros((0, 4), np.float16),
        "one": np.array(7, np.int64),
    }
    safetensors.write(tmp_path / "x", arrays)
    back = safetensors.read(tmp_path / "x")
    assert set(back) == set(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype and back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes()
        assert not back[name].flags.writeable and not back[name].flags.owndata


def test_a_file_of_the_format_as_it_is_described_is_read(tmp_path):
    """Bytes put together by hand: a header that is not padded, so that the array is not aligned."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    assert len(header) % 4
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + np.float32([1, 2]).tobytes())
    assert safetensors.read(tmp_path / "x")["w"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}, r"w \(3,\) does not fit bytes 0 to 8"),
        ({"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, r"w \(4,\) does not fit bytes 0 to 16"),
        ({"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}, "w is of dtype F8_E4M3; those that can be read"),
        ({"shape": [8]}, "header that cannot be read"),
    ],
    ids=["shape", "end", "dtype", "field"],
)
def test_a_header_that_lies_is_refused(entry, message, tmp_path):
    header = json.dumps({"w": entry}).encode()
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ValueError, match=message):
        safetensors.read(tmp_path / "x")


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    safetensors.write(tmp_path / "x", {"w": np.zeros(4, np.float32)})
    whole = (tmp_path / "x").read_bytes()
    for size in (0, 5, 20, len(whole) - 1):
        (tmp_path / "x").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="fetch"):
            safetensors.read(tmp_path / "x")
