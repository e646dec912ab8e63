"""The batch is as large as the memory, for programs whose sizes are known."""

from types import SimpleNamespace

import jax
import pytest

from copymit.evaluation.batch_size import fit_batch_size

PARAMETERS, EACH = 1000, 7


class Compiler:
    """Compiles nothing; says what a program of a size would take."""

    def __init__(self, refused_above=None):
        self.sizes = []
        self.refused_above = refused_above

    def __call__(self, size):
        self.sizes.append(size)
        if self.refused_above and size > self.refused_above:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 17 GiB of 16")
        memory = SimpleNamespace(
            argument_size_in_bytes=PARAMETERS,
            temp_size_in_bytes=(EACH - 1) * size,
            output_size_in_bytes=size,
            alias_size_in_bytes=0,
        )
        return SimpleNamespace(size=size, memory_analysis=lambda: memory)


def test_what_fits_is_compiled_once():
    compiler = Compiler()
    size, program = fit_batch_size(compiler, 64, 8, PARAMETERS + 64 * EACH)
    assert (size, program.size, compiler.sizes) == (64, 64, [64])


def test_the_largest_multiple_that_fits_is_found_at_the_second_try():
    compiler = Compiler()
    size, _ = fit_batch_size(compiler, 64, 8, PARAMETERS + 47 * EACH)
    assert (size, compiler.sizes) == (40, [64, 40])


def test_where_the_compiler_refuses_the_size_is_halved():
    compiler = Compiler(refused_above=20)
    size, _ = fit_batch_size(compiler, 64, 4, PARAMETERS + 1000 * EACH)
    assert (size, compiler.sizes) == (16, [64, 32, 16])


def test_another_failure_of_the_compiler_is_not_taken_for_memory():
    def fail(size):
        raise jax.errors.JaxRuntimeError("INTERNAL: no")

    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        fit_batch_size(fail, 8, 8, 100)


def test_what_never_fits_is_refused_with_both_numbers():
    with pytest.raises(
        ValueError, match=r"generating 8 images .* takes 0\.0 GiB of each"
    ):
        fit_batch_size(Compiler(), 64, 8, PARAMETERS)
