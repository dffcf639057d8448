//! The report as a person reads it, and as a script does.

use std::env;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};

use super::{Check, Report, Status};

/// How marks are drawn.
#[derive(Debug, Clone, Copy)]
struct Look {
    symbols: bool,
    colour: bool,
}

impl Look {
    /// Symbols and colour are for a terminal that shows them; a file gets plain words.
    fn of_stdout() -> Self {
        let terminal = io::stdout().is_terminal();
        let set = |name| env::var(name).ok().filter(|value| !value.is_empty());
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set);
        let utf8 = locale.is_some_and(|name| {
            let name = name.to_ascii_lowercase();
            name.contains("utf-8") || name.contains("utf8")
        });
        let dumb = env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self {
            symbols: terminal && utf8,
            colour: terminal && !dumb && set("NO_COLOR").is_none(),
        }
    }

    fn mark(self, status: Status) -> String {
        let (word, symbol, colour) = match status {
            Status::Ok => ("ok  ", "✓", 32),
            Status::Warn => ("warn", "!", 33),
            Status::Fail => ("FAIL", "✗", 31),
        };
        let mark = if self.symbols { symbol } else { word };
        match self.colour {
            true => format!("\x1b[{colour}m{mark}\x1b[0m"),
            false => mark.to_owned(),
        }
    }

    fn width(self) -> usize {
        if self.symbols { 1 } else { 4 }
    }
}

/// One line per check, its remedy below it, and the answer last.
pub(super) fn human(report: &Report) -> io::Result<()> {
    write(&compose(report, Look::of_stdout()))
}

/// One JSON object.
pub(super) fn json(report: &Report) -> io::Result<()> {
    let mut text = serde_json::to_string_pretty(report)?;
    text.push('\n');
    write(&text)
}

/// A reader that has seen enough is no error.
fn write(text: &str) -> io::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

fn compose(report: &Report, look: Look) -> String {
    let mut text = String::new();
    let names = report.checks.iter().map(|check| check.name.len());
    let width = names.max().unwrap_or(0);
    for check in &report.checks {
        line(&mut text, check, width, look);
    }
    let host = &report.host;
    let answer = if host.stock_kernels {
        "Stock kernels boot on this host."
    } else {
        "Stock kernels do not boot on this host."
    };
    let _ = writeln!(text, "{answer}");
    text
}

fn line(text: &mut String, check: &Check, width: usize, look: Look) {
    let (mark, name, detail) = (look.mark(check.status), check.name, &check.detail);
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{mark} {name:width$}  {detail}");
    if let Some(remedy) = &check.remedy {
        let indent = look.width() + 1 + width + 2;
        let arrow = if look.symbols { "→" } else { "->" };
        let _ = writeln!(text, "{:indent$}{arrow} {remedy}", "");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::HostReport;
    use vmm::probe::HostKind;

    fn report() -> Report {
        Report {
            version: "1.2.3",
            host: HostReport {
                kind: HostKind::Software,
                stock_kernels: false,
                kvm_module: Some("kvm_pvm"),
                cpu: None,
                kernel: None,
                guest_slowdown: Some(1000.0),
                missing_instructions: vec!["int3"],
            },
            checks: vec![
                Check::ok("kvm-api", "version 12"),
                Check::fail("tun", "missing", "load it"),
            ],
        }
    }

    #[test]
    fn plain_text_is_aligned() {
        let look = Look {
            symbols: false,
            colour: false,
        };
        assert_eq!(
            compose(&report(), look),
            "ok   kvm-api  version 12\n\
             FAIL tun      missing\n\
             \u{20}             -> load it\n\
             Stock kernels do not boot on this host.\n"
        );
    }

    #[test]
    fn a_terminal_gets_symbols_and_colour() {
        let look = Look {
            symbols: true,
            colour: true,
        };
        let text = compose(&report(), look);
        assert!(text.starts_with("\x1b[32m✓\x1b[0m kvm-api  version 12\n"));
        assert!(text.contains("\x1b[31m✗\x1b[0m tun"));
    }

    #[test]
    fn the_json_keeps_its_shape() {
        assert_eq!(
            serde_json::to_value(report()).unwrap(),
            serde_json::json!({
                "version": "1.2.3",
                "host": {
                    "kind": "software", "stock_kernels": false, "kvm_module": "kvm_pvm",
                    "cpu": null, "kernel": null, "guest_slowdown": 1000.0,
                    "missing_instructions": ["int3"],
                },
                "checks": [
                    { "name": "kvm-api", "status": "ok", "detail": "version 12", "remedy": null },
                    { "name": "tun", "status": "fail", "detail": "missing", "remedy": "load it" },
                ],
            })
        );
    }
}
