#!/bin/sh
# As RUSTC_WRAPPER: compiles with coverage counters what the targets run through, and everything else as it is, which builds in half the
# time. Build scripts and procedural macros, which cargo compiles without `--target`, can't be linked with counters.
case "$CARGO_PKG_NAME" in
forebay-* | libyaml-rs | percent-encoding | prost | quick-xml | serde_core | serde_json | url | yaml_serde) ;;
*) exec "$@" ;;
esac
case " $* " in
*" --target "*) ;;
*) exec "$@" ;;
esac
# A static program with libFuzzer ends in a null pointer at its first finding of new coverage; ours are static otherwise. What counts is what
# the program itself is linked with.
if [ "$CARGO_PKG_NAME" = forebay-fuzz ]; then
    for argument do
        shift
        case "$argument" in
        target-feature=+crt-static) argument=target-feature=-crt-static ;;
        esac
        set -- "$@" "$argument"
    done
fi
# As `cargo fuzz` does it; all of these are options of stable Rust.
exec "$@" --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares
