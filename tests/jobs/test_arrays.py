import hypothesis.extra.numpy as hnp
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_helpers import damages

from jobs.arrays import TAGGED, Bundle, decode_bundle, encode_bundle
from jobs.errors import DamagedRecord

DTYPES = ["bool", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]


def same(one: Bundle, other: Bundle) -> bool:
    return (
        one.arrays.keys() == other.arrays.keys()
        and all(
            array.shape == other.arrays[name].shape
            and array.dtype == other.arrays[name].dtype
            and array.tobytes() == other.arrays[name].tobytes()
            for name, array in one.arrays.items()
        )
        and one.dtypes == other.dtypes
        and one.meta == other.meta
    )


arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0))
)


@settings(max_examples=12, deadline=None)
@given(
    st.dictionaries(st.text(max_size=8), arrays, max_size=3),
    st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3),
)
def test_any_arrays_come_back_bit_exact(held, meta):
    bundle = Bundle.of(held, meta=meta)
    assert same(decode_bundle(encode_bundle(bundle)), bundle)


def test_every_bit_pattern_survives():
    every = np.arange(2**16, dtype=np.uint16)
    bundle = Bundle.of({"half": every.view(np.float16), "brain": every}, {"brain": "bfloat16"})
    found = decode_bundle(encode_bundle(bundle))
    assert same(found, bundle)
    assert found.dtypes == {"half": "float16", "brain": "bfloat16"}


@pytest.mark.parametrize("tag", TAGGED)
def test_tagged_dtypes_are_kept(tag):
    bundle = Bundle.of({"x": np.ones(3, TAGGED[tag])}, {"x": tag})
    assert decode_bundle(encode_bundle(bundle)).dtypes == {"x": tag}


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24.0).reshape(2, 3, 4).T,
        np.arange(24.0)[::-3],
        np.arange(24.0).reshape(4, 6)[1:3, ::2],
        np.broadcast_to(np.float32(2), (3, 4)),
        np.arange(5, dtype=">i4"),
        np.asfortranarray(np.eye(3)),
        np.array(7, np.int8),
        np.zeros((0, 5)),
    ],
)
def test_strides_and_byte_order_do_not_matter(array):
    (found,) = decode_bundle(encode_bundle(Bundle.of({"x": array}))).arrays.values()
    assert found.shape == array.shape
    assert np.array_equal(found, array)
    assert found.flags.writeable and found.dtype.isnative


def test_equal_bundles_have_equal_bytes():
    one, two = np.arange(3), np.zeros((2, 2), np.float16)
    forth = Bundle.of({"a": one, "b": two}, meta={"x": "1", "y": "2"})
    back = Bundle.of({"b": two.T, "a": one.copy()}, meta={"y": "2", "x": "1"})
    assert encode_bundle(forth) == encode_bundle(back)


def test_nbytes_counts_all_arrays():
    assert Bundle.of({"a": np.zeros((2, 3), np.float32), "b": np.zeros(5, np.uint8)}).nbytes == 29


def test_any_arrow_reader_can_open_it():
    data = encode_bundle(Bundle.of({"x": np.arange(4, dtype=np.float32)}))
    assert pa.ipc.open_stream(data).read_all().to_pydict() == {"x": [[0.0, 1.0, 2.0, 3.0]]}


@pytest.mark.parametrize(
    ("array", "dtype", "said"),
    [
        (np.zeros(2, np.complex64), "complex64", "complex64"),
        (np.array(["a"]), "str", "valid: bool"),
        (np.zeros(2, np.float32), "bfloat16", "cannot be bfloat16"),
        (np.zeros(2, np.uint16), "float99", "'bfloat16'"),
    ],
)
def test_what_cannot_be_stored_is_refused(array, dtype, said):
    with pytest.raises(ValueError, match=said):
        encode_bundle(Bundle.of({"x": array}, {"x": dtype}))


def test_a_dtype_without_an_array_is_refused():
    with pytest.raises(ValueError, match="dtypes"):
        encode_bundle(Bundle({"x": np.zeros(1)}, {"y": "float64"}))


def test_garbage_is_damage_or_another_bundle_but_never_a_crash():
    data = encode_bundle(Bundle.of({"x": np.arange(4, dtype=np.float32)}))
    for damaged in damages(data, stride=3):
        try:
            decode_bundle(damaged)
        except DamagedRecord:
            continue
