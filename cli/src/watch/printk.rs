//! The Linux kernel's lines among those of a console.
//!
//! With CONFIG_PRINTK_TIME, as distributions have it, each begins with a time stamp, and with
//! CONFIG_PRINTK_CALLER the thread or CPU follows: `[    1.234567][    T1] text`
//! (kernel/printk/printk.c, `print_time` and `print_caller`).

use std::time::Duration;

/// What a kernel's line says, and when by the kernel's own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelLine<'a> {
    /// Since the kernel's clock began.
    pub time: Duration,
    /// The text behind the stamps.
    pub text: &'a str,
}

/// The kernel's line in a line of the console, if there is one. It need not begin the line: a program
/// may have printed a prompt before.
pub fn parse(line: &str) -> Option<KernelLine<'_>> {
    line.match_indices('[').find_map(|(at, _)| {
        let (time, rest) = stamp(&line[at..])?;
        Some(KernelLine {
            time,
            text: behind_caller(rest),
        })
    })
}

/// `[    1.234567]` and what follows it.
fn stamp(text: &str) -> Option<(Duration, &str)> {
    let (inner, rest) = text.strip_prefix('[')?.split_once(']')?;
    let (seconds, micros) = inner.trim_start_matches(' ').split_once('.')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !is_number(seconds) || !is_number(micros) || micros.len() != 6 {
        return None;
    }
    let time = Duration::from_secs(seconds.parse().ok()?)
        .checked_add(Duration::from_micros(micros.parse().ok()?))?;
    Some((time, rest))
}

fn behind_caller(rest: &str) -> &str {
    let caller = rest.strip_prefix('[').and_then(|rest| {
        let (caller, rest) = rest.split_once(']')?;
        caller.trim_start().starts_with(['T', 'C']).then_some(rest)
    });
    let text = caller.unwrap_or(rest);
    text.strip_prefix(' ').unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_read_and_left_out() {
        for (line, micros, text) in [
            ("[    0.000000] Linux version 6.1", 0, "Linux version 6.1"),
            ("[12345.678901] x", 12_345_678_901, "x"),
            ("[    1.000001][    T1] y [z]", 1_000_001, "y [z]"),
            ("[    1.000001][   C0]  indented", 1_000_001, " indented"),
            ("login: [    2.500000] late", 2_500_000, "late"),
            ("[  OK  ] [    2.500000] [x] y", 2_500_000, "[x] y"),
            ("[    0.100000]", 100_000, ""),
        ] {
            let expected = KernelLine {
                time: Duration::from_micros(micros),
                text,
            };
            assert_eq!(parse(line), Some(expected), "{line}");
        }
    }

    #[test]
    fn other_lines_are_not_the_kernels() {
        for line in [
            "",
            "[",
            "hello",
            "[  OK  ] Started a service",
            "[1.5]",
            "[ .000000] x",
            "[1.0000000] x",
            "[-1.000000] x",
            "[99999999999999999999.000000] x",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
