//! The tests, by what they are about.

mod balloon;
mod boot;
mod command;
mod console;
mod crash;
mod disk;
mod end;
mod hvc;
mod image;
mod integrity;
mod library;
mod live;
mod net;
mod overlay;
mod pmem;
mod rate;
mod refusals;
mod rng;
mod runs;
mod share;
mod terminal;
mod user_net;
mod vsock;

use std::time::Duration;

use crate::runner::Test;

/// How long a test with one or two boots of the small kernel may take.
const SHORT: Duration = Duration::from_secs(90);
/// How long one with the stock kernel, or much to do, may take.
const LONG: Duration = Duration::from_secs(180);
/// How long one with many boots may take.
const LONGEST: Duration = Duration::from_secs(600);

/// Declares the tests of a room: a limit, and functions whose names are the tests'.
macro_rules! tests {
    ($room:literal: $($limit:ident $name:ident,)*) => {
        /// The tests of this file.
        pub fn tests() -> Vec<crate::runner::Test> {
            vec![$(crate::runner::Test {
                name: concat!($room, "::", stringify!($name)),
                limit: super::$limit,
                run: $name,
            },)*]
        }
    };
}
use tests;

/// All tests. The long ones come first, so that none is left running alone at the end.
pub fn all() -> Vec<Test> {
    let rooms = [
        boot::tests,
        command::tests,
        end::tests,
        disk::tests,
        console::tests,
        hvc::tests,
        terminal::tests,
        rng::tests,
        balloon::tests,
        library::tests,
        live::tests,
        overlay::tests,
        image::tests,
        pmem::tests,
        crash::tests,
        integrity::tests,
        user_net::tests,
        refusals::tests,
        runs::tests,
        share::tests,
        vsock::tests,
        net::tests,
        rate::tests,
    ];
    let mut tests: Vec<_> = rooms.iter().flat_map(|tests| tests()).collect();
    tests.sort_by_key(|test| std::cmp::Reverse(test.limit));
    tests
}
