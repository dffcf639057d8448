//! Options of the command line: lists of `key=value`, sizes, and what is made of them.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use vmm::config::{
    BalloonConfig, DiskConfig, MacAddress, MemorySize, NetConfig, PmemConfig, RngConfig, Span,
    VsockConfig,
};
use vmm::console::ConsoleConfig;

use crate::target::Target;

/// The target. The first byte of its input picks the option; the rest is its value.
#[derive(Debug)]
pub struct Options;

/// A way to read an option, and values for it.
type Option = (fn(&str), &'static [&'static str]);

const OPTIONS: &[Option] = &[
    (
        round_trip::<DiskConfig>,
        &["img.ext4", "a,,b.img,ro", "/dev/sdb,serial=x,,y=1,ro=off"],
    ),
    (round_trip::<MemorySize>, &["256M", "4G", "131072K", "1"]),
    (
        round_trip::<ConsoleConfig>,
        &["stdio", "file=boot.log", "pty", "unix=/run/vm.sock", "none"],
    ),
    (
        round_trip::<BalloonConfig>,
        &["off", "size=64M", "size=1G,stats=5s,deflate-on-oom=off"],
    ),
    (
        round_trip::<NetConfig>,
        &["tap=tap0", "fd=3,mac=52:54:00:12:34:56,mtu=9000,queues=4"],
    ),
    (round_trip::<MacAddress>, &["52:54:00:12:34:56"]),
    (
        round_trip::<PmemConfig>,
        &["img.ext4", "a,,b.img,ro", "img.ext4,root,ro=off"],
    ),
    (round_trip::<RngConfig>, &["on", "off"]),
    (
        round_trip::<VsockConfig>,
        &["cid=3,uds=/run/v", "uds=a,,b,cid=4294967294"],
    ),
    (round_trip::<Span>, &["5s", "100ms", "2m", "1h"]),
];

/// Whatever was read is written so that it reads the same.
fn round_trip<T: FromStr<Err: Display> + Display + PartialEq + Debug>(text: &str) {
    match text.parse::<T>() {
        Ok(value) => {
            let written = value.to_string();
            match written.parse::<T>() {
                Ok(again) => assert_eq!(again, value, "{written:?}"),
                Err(error) => panic!("{written:?} was written and does not read: {error}"),
            }
        }
        Err(error) => drop(error.to_string()),
    }
}

impl Target for Options {
    fn name(&self) -> &str {
        "options"
    }

    fn about(&self) -> String {
        "options of the command line".to_owned()
    }

    fn run(&self, data: &[u8]) {
        let Some((which, text)) = data.split_first() else {
            return;
        };
        let (read, _) = OPTIONS[usize::from(*which) % OPTIONS.len()];
        read(&String::from_utf8_lossy(text));
    }

    fn seeds(&self) -> Vec<Vec<u8>> {
        let seed = |which: u8, text: &str| [&[which], text.as_bytes()].concat();
        (0..)
            .zip(OPTIONS)
            .flat_map(|(which, (_, texts))| texts.iter().map(move |text| seed(which, text)))
            .collect()
    }
}
