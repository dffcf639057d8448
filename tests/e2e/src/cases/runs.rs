//! Boots as tests: what the console must and must not show, and what mvm makes of it.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::tests;
use crate::context::{Context, Kernel};
use crate::vm::Outcome;

tests! { "runs":
    LONG stock_expected_line,
    LONG stock_hung_task_is_fatal,
    LONG stock_log_in,
    LONG matrix,
    SHORT log_in,
    SHORT log_in_with_the_wrong_password,
    SHORT panic_that_stands_still_is_fatal,
    SHORT expected_prompt,
    SHORT expected_lines_then_the_guest_is_ended,
    SHORT expected_line_that_does_not_come,
    SHORT forbidden_line,
    SHORT kernel_error_is_told,
}

/// With a report of it: every stage is there, in order, and the guest was left in every way there is.
fn stock_expected_line(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let path = context.path("report.json");
    let chart = context.path("boot.svg");
    context
        .script(Kernel::StockBzimage, &rootfs, "hang")?
        .args("--cpus 2 --kernel-errors fatal --timeout 150s")
        .args("--expect ^hanging$ --expect Run./init.as.init.process")
        .args(&format!("--report {}", path.display()))
        .args(&format!("--boot-chart {}", chart.display()))
        .exits_with(0)?;
    let chart = fs::read_to_string(chart)?;
    for words in [
        "assemble the VM",
        "early set-up",
        "network, file systems, drivers",
        "longest silences",
    ] {
        ensure!(chart.contains(words), "the chart has no '{words}'");
    }
    let report: Value = serde_json::from_slice(&fs::read(path)?)?;
    ensure!(report["result"] == "passed", "{report}");
    let stages = report["stages"].as_array().context("no stages")?;
    let names: Vec<_> = stages.iter().map(|stage| stage["name"].as_str()).collect();
    let wanted = ["start", "vm-created", "first-instruction", "init", "end"];
    ensure!(names == wanted.map(Some), "{report}");
    ensure!(
        stages.iter().map(|stage| stage["ms"].as_f64()).is_sorted(),
        "{report}"
    );
    let exits = report["exits"].as_object().context("no exits")?;
    ensure!(
        exits.values().all(|count| count.as_u64() > Some(0)),
        "{report}"
    );
    Ok(())
}

/// The kernel's own complaint, not a made-up one.
fn stock_hung_task_is_fatal(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let outcome = context
        .script(Kernel::StockElf, &rootfs, "hung-task")?
        .args("--kernel-errors fatal --timeout 150s")
        .exits_with(122)?;
    ensure!(
        outcome.stderr.contains("INFO: task touch:"),
        "mvm says: {}",
        outcome.stderr
    );
    // The whole report is waited for.
    outcome.says("Call Trace:")
}

/// The example of `resources/ci`, with a root whose password is this.
fn logs_in(context: &Context, kernel: Kernel, password: &str, status: i32) -> Result<Outcome> {
    let script = context.path("login.script");
    fs::write(
        &script,
        include_str!("../../../../resources/ci/login.script"),
    )?;
    let rootfs = context.rootfs()?;
    context
        .script(kernel, &rootfs, &format!("login,{password}"))?
        .args(&format!("--script {}", script.display()))
        .exits_with(status)
}

fn stock_log_in(context: &Context) -> Result<()> {
    logs_in(context, Kernel::StockBzimage, "secret", 0)?.says("test login: exit 0")
}

fn log_in(context: &Context) -> Result<()> {
    logs_in(context, Kernel::TinyElf, "secret", 0)?.says("test login: exit 0")
}

fn log_in_with_the_wrong_password(context: &Context) -> Result<()> {
    let outcome = logs_in(context, Kernel::TinyElf, "other", 122)?;
    let said = "login.script, line 8: '[#$] $' did not come within 30s";
    ensure!(
        outcome.stderr.contains(said),
        "mvm says: {}",
        outcome.stderr
    );
    outcome.says("Login incorrect")
}

/// Kernels, CPUs and commands; one of these fails.
fn matrix(context: &Context) -> Result<()> {
    let file = context.path("boots.toml");
    let rootfs = context.rootfs()?;
    let settings = format!(
        "[settings]\nrootfs = '{},overlay'\ninitrd = '{}'\nmem = '512M'\nkernel-errors = 'fatal'\n\
         [matrix]\nkernel = ['{}', '{}']\ncommand = [['uname', '-r'], ['false']]\n",
        rootfs.display(),
        context.guest("initrd").display(),
        context.guest("vmlinuz").display(),
        context.guest("tiny-vmlinux").display(),
    );
    fs::write(&file, settings)?;
    let (out, report) = (context.path("out"), context.path("boots.json"));
    let outcome = context
        .mvm()
        .args(&format!("test {} -j 2", file.display()))
        .args(&format!(
            "--out {} --report {}",
            out.display(),
            report.display()
        ))
        .exits_with(1)?;
    outcome.says("2 passed, 2 failed, 0 errors, 0 skipped")?;
    let report: Value = serde_json::from_slice(&fs::read(&report)?)?;
    let cases = report["cases"].as_array().context("no cases")?;
    let ends: Vec<_> = cases
        .iter()
        .map(|case| (case["name"].as_str(), case["status"].as_u64()))
        .collect();
    let expected = [
        ("kernel=vmlinuz command=uname -r", 0),
        ("kernel=vmlinuz command=false", 1),
        ("kernel=tiny-vmlinux command=uname -r", 0),
        ("kernel=tiny-vmlinux command=false", 1),
    ];
    let expected = expected.map(|(name, status)| (Some(name), Some(status)));
    ensure!(ends == expected, "{report:#}");
    let console = out.join("kernel=vmlinuz_command=false/console.log");
    let console = fs::read_to_string(console)?;
    ensure!(
        console.contains("Linux version"),
        "the console is {console}"
    );
    Ok(())
}

fn expected_prompt(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    context
        .boot(Kernel::TinyElf)?
        .arg("--rootfs")
        .arg(rootfs)
        .arg("--expect")
        .arg("^mvm:/root# $")
        .args("--timeout 60s")
        .exits_with(0)?;
    Ok(())
}

fn expected_lines_then_the_guest_is_ended(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    context
        .script(Kernel::TinyElf, &rootfs, "hang")?
        .args("--expect ^hanging$ --expect Linux.version --timeout 60s")
        .exits_with(0)?;
    Ok(())
}

fn expected_line_that_does_not_come(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let outcome = context
        .script(Kernel::TinyElf, &rootfs, "poweroff")?
        .args("--expect Linux.version --expect never")
        .exits_with(122)?;
    ensure!(
        outcome.stderr == "mvm: the guest powered off, and no line matched --expect 'never'\n",
        "mvm says: {}",
        outcome.stderr
    );
    Ok(())
}

fn forbidden_line(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let outcome = context
        .script(Kernel::TinyElf, &rootfs, "hang")?
        .args("--expect never --fail-on ^hang --timeout 60s")
        .exits_with(122)?;
    ensure!(
        outcome.stderr == "mvm: --fail-on '^hang' matched: hanging\n",
        "mvm says: {}",
        outcome.stderr
    );
    Ok(())
}

/// The command line makes the kernel stand still after the panic, and without ACPI it does not find the
/// device to report it to: only the console tells.
fn panic_that_stands_still_is_fatal(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let outcome = context
        .script(Kernel::TinyElf, &rootfs, "panic")?
        .append("panic=0")
        .args("--no-acpi --kernel-errors fatal --timeout 60s")
        .exits_with(123)?;
    ensure!(
        outcome.stderr.contains("Kernel panic - not syncing"),
        "mvm says: {}",
        outcome.stderr
    );
    outcome.says("---[ end Kernel panic")
}

fn kernel_error_is_told(context: &Context) -> Result<()> {
    let rootfs = context.rootfs()?;
    let outcome = context
        .script(Kernel::TinyElf, &rootfs, "kmsg,BUG:,sleeping,function")?
        .args("--expect ^said$ --kernel-errors report")
        .exits_with(0)?;
    ensure!(
        outcome.stderr.contains("reported 1 error: [")
            && outcome.stderr.contains("BUG: sleeping function"),
        "mvm says: {}",
        outcome.stderr
    );
    Ok(())
}
