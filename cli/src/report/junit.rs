//! A report as JUnit XML: test cases that GitHub, GitLab and Jenkins show.
//!
//! There is no standard, but a common ground: Jenkins' junit-10.xsd, of which GitLab reads `testcase`
//! with `failure`, `error`, `skipped` and `system-out`. A suite is one run; its case `boot` is the run as
//! a whole, and each expectation is one more.

use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};

use super::{Ran, Report};

/// A group of cases.
pub struct Suite {
    /// Its name.
    pub name: String,
    /// When it began: RFC 3339.
    pub started: String,
    /// How long it took.
    pub time: Duration,
    /// What else is to be known of it, by name.
    pub properties: Vec<(&'static str, String)>,
    /// Its cases.
    pub cases: Vec<Case>,
}

/// One case.
pub struct Case {
    /// Its name, which stays the same from run to run.
    pub name: String,
    /// How long it took.
    pub time: Duration,
    /// What became of it.
    pub end: End,
    /// What it printed, where that is of interest.
    pub output: String,
}

/// What became of a case: why in a line, and what there is to read.
pub enum End {
    /// It passed.
    Passed,
    /// It failed.
    Failed(String, String),
    /// It could not be run.
    Error(String, String),
    /// It was not run.
    Skipped(String),
}

/// The whole file.
pub fn compose(suite: &Suite) -> io::Result<String> {
    let mut xml = Writer::new_with_indent(Vec::new(), b' ', 2);
    xml.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
    xml.create_element("testsuites")
        .write_inner_content(|xml| write_suite(xml, suite))?;
    let mut text = String::from_utf8(xml.into_inner()).map_err(io::Error::other)?;
    text.push('\n');
    Ok(text)
}

type Xml = Writer<Vec<u8>>;

fn write_suite(xml: &mut Xml, suite: &Suite) -> io::Result<()> {
    let count = |of: fn(&End) -> bool| {
        let count = suite.cases.iter().filter(|case| of(&case.end)).count();
        count.to_string()
    };
    let attributes = [
        ("name", clean(&suite.name)),
        ("tests", count(|_| true)),
        ("failures", count(|end| matches!(end, End::Failed(..)))),
        ("errors", count(|end| matches!(end, End::Error(..)))),
        ("skipped", count(|end| matches!(end, End::Skipped(_)))),
        ("time", seconds(suite.time)),
        // Without fraction and zone, as the schema has it; it is UTC.
        ("timestamp", suite.started.chars().take(19).collect()),
    ];
    xml.create_element("testsuite")
        .with_attributes(pairs(&attributes))
        .write_inner_content(|xml| {
            write_properties(xml, &suite.properties)?;
            // Jenkins takes what is before the last dot for a package.
            let class = format!("mvm.{}", clean(&suite.name).replace('.', "_"));
            suite
                .cases
                .iter()
                .try_for_each(|case| write_case(xml, &class, case))
        })?;
    Ok(())
}

fn write_properties(xml: &mut Xml, properties: &[(&'static str, String)]) -> io::Result<()> {
    if properties.is_empty() {
        return Ok(());
    }
    xml.create_element("properties")
        .write_inner_content(|xml| {
            properties.iter().try_for_each(|(name, value)| {
                xml.create_element("property")
                    .with_attribute(("name", *name))
                    .with_attribute(("value", clean(value).as_str()))
                    .write_empty()?;
                Ok(())
            })
        })?;
    Ok(())
}

fn write_case(xml: &mut Xml, class: &str, case: &Case) -> io::Result<()> {
    let attributes = [
        ("classname", class.to_owned()),
        ("name", clean(&case.name)),
        ("time", seconds(case.time)),
    ];
    let element = xml
        .create_element("testcase")
        .with_attributes(pairs(&attributes));
    if matches!(case.end, End::Passed) && case.output.is_empty() {
        element.write_empty()?;
        return Ok(());
    }
    element.write_inner_content(|xml| {
        match &case.end {
            End::Passed => {}
            End::Failed(message, text) => write_end(xml, "failure", message, text)?,
            End::Error(message, text) => write_end(xml, "error", message, text)?,
            End::Skipped(message) => write_end(xml, "skipped", message, "")?,
        }
        if !case.output.is_empty() {
            let output = clean(&case.output);
            xml.create_element("system-out")
                .write_text_content(BytesText::new(&output))?;
        }
        Ok(())
    })?;
    Ok(())
}

fn write_end(xml: &mut Xml, what: &str, message: &str, text: &str) -> io::Result<()> {
    let message = clean(message);
    let element = xml
        .create_element(what)
        .with_attribute(("message", message.as_str()));
    match text {
        "" => element.write_empty()?,
        text => element.write_text_content(BytesText::new(&clean(text)))?,
    };
    Ok(())
}

fn pairs<'a>(attributes: &'a [(&'static str, String)]) -> impl Iterator<Item = (&'a str, &'a str)> {
    attributes
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
}

/// Characters that XML 1.0 §2.2 does not have, not even escaped, are replaced.
pub fn clean(text: &str) -> String {
    let fits = |c| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{fffd}' | '\u{10000}'..);
    text.chars()
        .map(|c| if fits(c) { c } else { '\u{fffd}' })
        .collect()
}

fn seconds(time: Duration) -> String {
    format!("{:.3}", time.as_secs_f64())
}

/// The cases of one run.
pub(super) fn of_run(report: &Report<'_>) -> io::Result<String> {
    let kernel = report.vm.kernel.file_name();
    let name = kernel.map_or_else(|| "mvm".to_owned(), |it| it.to_string_lossy().into_owned());
    let mut properties = vec![
        ("mvm", report.mvm.to_owned()),
        ("kernel", report.vm.kernel.display().to_string()),
        ("cpus", report.vm.cpus.to_string()),
        ("mem", report.vm.mem.to_string()),
        ("peak-memory-kib", report.usage.peak_memory_kib.to_string()),
    ];
    let stages = report.stages.iter().filter(|stage| stage.ms > 0.0);
    properties.extend(stages.map(|stage| (stage.name, format!("{:.3} ms", stage.ms))));
    let mut cases = vec![boot(report)];
    cases.extend(report.expect.iter().map(|it| Case {
        name: format!("expect {}", it.pattern),
        time: it.ms.map_or(report.total, from_millis),
        end: match it.line {
            Some(_) => End::Passed,
            None => End::Failed("no line matched".to_owned(), String::new()),
        },
        output: it.line.unwrap_or_default().to_owned(),
    }));
    cases.extend(report.fail_on.iter().map(|it| Case {
        name: format!("fail-on {}", it.pattern),
        time: it.ms.map_or(report.total, from_millis),
        end: match it.line {
            None => End::Passed,
            Some(line) => End::Failed(format!("a line matched: {line}"), String::new()),
        },
        output: String::new(),
    }));
    cases.extend(report.script.iter().map(|it| Case {
        name: format!("script line {}: {}", it.line, it.step),
        time: it.ms.map_or(report.total, from_millis),
        end: match it.ms {
            Some(_) => End::Passed,
            None => End::Failed("not done".to_owned(), String::new()),
        },
        output: String::new(),
    }));
    compose(&Suite {
        name,
        started: report.started.clone(),
        time: report.total,
        properties,
        cases,
    })
}

/// The run as a whole, with the kernel's errors and the console's last lines to read.
fn boot(report: &Report<'_>) -> Case {
    let mut errors = String::new();
    for error in &report.kernel_errors {
        // Writing to a string cannot fail.
        let _ = writeln!(errors, "{}\n", error.text.join("\n"));
    }
    let message = report.message.clone().unwrap_or_default();
    let tail = report.console_tail.join("\n");
    let (end, output) = match report.result {
        Ran::Passed => (End::Passed, errors),
        Ran::Failed => (End::Failed(message, errors + &tail), String::new()),
        Ran::Error | Ran::Skipped => (End::Error(message, errors + &tail), String::new()),
    };
    Case {
        name: "boot".to_owned(),
        time: report.total,
        end,
        output,
    }
}

fn from_millis(ms: f64) -> Duration {
    Duration::from_secs_f64(ms / 1e3)
}
