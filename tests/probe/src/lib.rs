//! What the two ends of a test's connection agree on; the guest's end is the binary of this package, the other the
//! end-to-end tests.

pub mod talk;
