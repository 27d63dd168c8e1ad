"""The tables, against the form in which the authors publish them: indices into the 43 names, in CLC order."""

import numpy as np

from ingest.archives import clc

# `label_conversion` of BigEarthNet-S2 19-class models (TU Berlin), and `label_converter` of torchgeo
PUBLISHED = [
    *([0, 1], [2], [11, 12, 13], [14, 15, 16, 18], [17], [19], [20], [21], [22], [23], [24], [25, 31], [26, 27], [28]),
    *([29], [33, 34], [35, 36], [38, 39], [40, 41, 42]),
]


def test_the_43_names_map_as_published() -> None:
    assert len(clc.V1_NAMES) == len(set(clc.V1_NAMES)) == 43
    assert len(clc.CLASSES) == len(set(clc.CLASSES)) == 19
    joined = {index: target for target, indices in enumerate(PUBLISHED) for index in indices}
    assert [clc.NAME_TO_CLASS[name] for name in clc.V1_NAMES] == [joined.get(index) for index in range(43)]


def test_classes_are_not_alphabetical_and_spelt_as_in_version_2() -> None:
    assert clc.CLASSES[0] == "Urban fabric"
    assert clc.CLASSES[-1] == "Marine waters"
    assert list(clc.CLASSES) != sorted(clc.CLASSES)
    assert {"Transitional woodland, shrub", "Beaches, dunes, sands"} <= set(clc.CLASSES)


def test_codes_and_names_say_the_same() -> None:
    assert len(clc.CLC_NAMES) == 44
    assert list(clc.CLC_NAMES) == sorted(clc.CLC_NAMES)
    for code, name in clc.CLC_NAMES.items():
        assert clc.CLC_TO_CLASS.get(code) == clc.NAME_TO_CLASS.get(name)
    dropped = {code for code in clc.CLC_NAMES if code not in clc.CLC_TO_CLASS}
    assert dropped == {122, 123, 124, 131, 132, 133, 141, 142, 332, 334, 335, 423}


def test_lookup_ignores_what_is_in_no_class() -> None:
    table = clc.code_table()
    assert table.shape == (65536,)
    assert table.dtype == np.uint8
    assert table[523] == clc.CLASSES.index("Marine waters")
    assert {int(table[code]) for code in (0, 124, 334, 423, 999, 65535)} == {clc.IGNORE}


def test_multi_hot() -> None:
    hot = clc.multi_hot([0, 18, 18])
    assert hot.dtype == np.uint8
    assert np.flatnonzero(hot).tolist() == [0, 18]
