//! Developer tooling.
fn main() {}
