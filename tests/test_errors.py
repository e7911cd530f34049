"""Errors of the package are what callers catch."""

from codecplus.errors import CodecPlusError, InputError


def test_errors_are_of_the_builtin_types_that_callers_catch():
    assert issubclass(InputError, CodecPlusError)
    assert issubclass(InputError, ValueError)
