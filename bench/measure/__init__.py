"""The parts of `bench/compare`; see `bench/README.md`."""
