//! Charts of made-up boots: their rows, and that the picture is one.

use std::time::{Duration, Instant};

use vmm::config::VmConfig;
use vmm::events::{Event, EventKind};

use super::rows::{Boot, Group};
use super::*;
use crate::chart::log::KernelLog;
use crate::policy::Policy;
use crate::record::Start;
use crate::watch::Wanted;

/// A boot whose kernel says these lines at these milliseconds.
fn record(lines: &[(u64, &str)]) -> Record {
    let start = Start::now();
    let at = |ms| start.at + Duration::from_millis(ms);
    let mut record = Record::new(start, VmConfig::new("vmlinuz"), Wanted::default());
    record.log = Some(KernelLog::default());
    record.stages.created(at(10));
    let mut happens = |at: Instant, kind| record.on_event(&Event { at, kind });
    happens(at(20), EventKind::Started);
    for (ms, line) in lines {
        happens(at(*ms), EventKind::Line((*line).to_owned()));
    }
    happens(at(1000), EventKind::Ended(None));
    record
}

const LINUX: [(u64, &str); 9] = [
    (300, "[    0.000000] Linux version 6.12"),
    (310, "[    0.050000] printk: legacy console [ttyS0] enabled"),
    (400, "[    0.100000] smp: Bringing up secondary CPUs ..."),
    (450, "[    0.200000] devtmpfs: initialized"),
    (
        500,
        "[    0.300000] Trying to unpack rootfs image as initramfs...",
    ),
    (560, "[    0.400000] Freeing initrd memory: 4792K"),
    (
        780,
        "[    0.500000] Freeing unused kernel image (initmem) memory: 4024K",
    ),
    (800, "[    0.600000] Run /init as init process"),
    (900, "[    0.700000] a module <&> is loaded"),
];

fn rows(boot: &Boot) -> Vec<(&'static str, u128, u128)> {
    let rows = boot.rows.iter();
    rows.map(|row| (row.name, row.from.as_millis(), row.to.as_millis()))
        .collect()
}

#[test]
fn every_stage_is_a_row() {
    let boot = Boot::of(&record(&LINUX));
    assert_eq!(
        rows(&boot),
        [
            ("assemble the VM", 0, 10),
            ("start its vCPUs", 10, 20),
            ("unpack and enter the kernel", 20, 250),
            ("early set-up", 250, 400),
            ("start the CPUs", 400, 450),
            ("subsystems: ACPI, buses, memory", 450, 780),
            ("hand over to init", 780, 800),
            ("print the early log", 300, 310),
            ("unpack the initramfs", 500, 560),
            ("init", 800, 1000),
        ]
    );
    assert_eq!(boot.lines.len(), 8, "those up to init");
    assert_eq!(boot.silences[0].after, "Freeing initrd memory: 4792K");
    assert_eq!(
        boot.silences[0].to - boot.silences[0].from,
        Duration::from_millis(220)
    );
    let printing = |silence: &rows::Silence| silence.after.contains("console");
    assert!(!boot.silences.iter().any(printing), "that is no silence");
}

#[test]
fn a_guest_that_is_no_linux_has_a_chart_too() {
    let boot = Boot::of(&record(&[(100, "hello")]));
    assert_eq!(
        rows(&boot),
        [
            ("assemble the VM", 0, 10),
            ("start its vCPUs", 10, 20),
            ("guest", 20, 1000)
        ]
    );
    assert_eq!(boot.rows[2].group, Group::Guest);
    assert!(boot.silences.is_empty() && boot.lines.is_empty());
}

#[test]
fn the_picture_is_well_formed_whatever_the_kernel_says() {
    let hostile = [
        (100, "[    0.000000] <script>&\"'\u{fffe}"),
        (500, "[    0.000000] \u{202e}x"),
    ];
    for lines in [&LINUX[..], &hostile, &[]] {
        let record = record(lines);
        let outcome = Policy::new(true).outcome(vmm::ExitReason::PoweredOff, None);
        let svg = compose(&record, Ok(&outcome)).unwrap();
        let mut reader = quick_xml::Reader::from_str(&svg);
        let mut texts = 0;
        loop {
            match reader.read_event().expect("well-formed XML") {
                quick_xml::events::Event::Start(tag) if tag.name().as_ref() == "text" => texts += 1,
                quick_xml::events::Event::Eof => break,
                _ => {}
            }
        }
        assert!(texts > 8, "{svg}");
        assert!(!svg.contains("<script>"));
    }
}

#[test]
fn a_chart_is_an_svg() {
    assert!("a/b.svg".parse::<ChartPath>().is_ok());
    let error = "b.png".parse::<ChartPath>().unwrap_err().to_string();
    assert_eq!(
        error,
        "'b.png' does not end in .svg, which is what a chart is"
    );
}
