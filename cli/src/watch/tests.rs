//! Verdicts on consoles of a few lines.

use super::*;

fn patterns(texts: &[&str]) -> Vec<Pattern> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn watch(expect: &[&str], fail_on: &[&str], kernel_errors: KernelErrors) -> Watch {
    Watch::new(Wanted {
        expect: patterns(expect),
        fail_on: patterns(fail_on),
        script: None,
        has_command: false,
        kernel_errors: Some(kernel_errors),
    })
}

fn say(watch: &mut Watch, kind: EventKind) -> Option<Verdict> {
    let at = Instant::now();
    watch.on_event(&Event { at, kind })
}

/// Feeds whole lines; the verdict and the line it fell at.
fn lines(watch: &mut Watch, texts: &[&str]) -> Option<(Verdict, usize)> {
    let mut verdicts = texts.iter().enumerate().filter_map(|(number, text)| {
        let verdict = say(watch, EventKind::Line((*text).to_owned()))?;
        Some((verdict, number))
    });
    let first = verdicts.next();
    assert_eq!(verdicts.next(), None, "it decides once");
    first
}

fn unfinished(text: &str) -> EventKind {
    EventKind::Unfinished(text.to_owned())
}

#[test]
fn all_that_is_expected_must_come_in_any_order() {
    let mut all = watch(&["one", "^two$"], &["bad"], KernelErrors::Ignore);
    assert_eq!(
        all.unmet().unwrap(),
        "no line matched --expect 'one', '^two$'"
    );
    let verdict = lines(&mut all, &["two", "x", "x two", "one", "bad"]);
    assert_eq!(verdict, Some((Verdict::Met, 3)));
    assert_eq!(all.unmet(), None);
    let mut one_line = watch(&["one", "two"], &[], KernelErrors::Ignore);
    assert_eq!(lines(&mut one_line, &["two one"]), Some((Verdict::Met, 0)));
}

#[test]
fn what_must_not_come_fails_at_once_and_wins_on_its_line() {
    let mut bad = watch(&["one"], &["bad"], KernelErrors::Ignore);
    let verdict = lines(&mut bad, &["x", "one is bad", "one"]);
    assert_eq!(verdict, Some((Verdict::Failed, 1)));
    assert_eq!(bad.failure(), Some("--fail-on 'bad' matched: one is bad"));
}

#[test]
fn nothing_expected_is_never_met() {
    let mut watch = watch(&[], &["bad"], KernelErrors::Ignore);
    assert_eq!(lines(&mut watch, &["x", "y"]), None);
    assert_eq!(watch.on_end(), None);
    assert_eq!(watch.unmet(), None);
}

#[test]
fn a_command_is_not_cut_short() {
    let mut watch = Watch::new(Wanted {
        expect: patterns(&["one"]),
        fail_on: patterns(&["bad"]),
        has_command: true,
        ..Wanted::default()
    });
    assert_eq!(lines(&mut watch, &["one", "two"]), None);
    assert_eq!(watch.unmet(), None);
    assert_eq!(lines(&mut watch, &["bad"]), Some((Verdict::Failed, 0)));
}

#[test]
fn a_prompt_matches_before_its_line_ends() {
    let mut prompt = watch(&["login:"], &[], KernelErrors::Ignore);
    assert_eq!(say(&mut prompt, unfinished("debian log")), None);
    let verdict = say(&mut prompt, unfinished("debian login: "));
    assert_eq!(verdict, Some(Verdict::Met));
}

#[test]
fn what_must_not_come_is_told_by_its_whole_line() {
    let mut both = watch(&["one"], &["bad"], KernelErrors::Ignore);
    assert_eq!(say(&mut both, unfinished("one is")), None);
    assert_eq!(say(&mut both, unfinished("one is bad")), None);
    let whole = EventKind::Line("one is bad enough".to_owned());
    assert_eq!(say(&mut both, whole), Some(Verdict::Failed));
    assert_eq!(
        both.failure(),
        Some("--fail-on 'bad' matched: one is bad enough")
    );
    let mut rests = watch(&["one"], &["bad"], KernelErrors::Ignore);
    assert_eq!(say(&mut rests, unfinished("one")), None);
    let rested = rests.wakes_at().unwrap();
    assert_eq!(rests.on_time(rested), Some(Verdict::Met));
}

#[test]
fn the_end_of_a_line_is_not_seen_before_it_rests() {
    let mut prompt = watch(&["# $"], &[], KernelErrors::Ignore);
    assert_eq!(say(&mut prompt, unfinished("~ # ")), None);
    let rested = prompt.wakes_at().unwrap();
    assert_eq!(prompt.on_time(rested - Duration::from_millis(1)), None);
    assert_eq!(say(&mut prompt, unfinished("~ # ls")), None);
    assert!(prompt.wakes_at().unwrap() >= rested, "it goes on");
    assert_eq!(say(&mut prompt, EventKind::Line("~ # ls".to_owned())), None);
    assert_eq!(prompt.wakes_at(), None);
    assert_eq!(say(&mut prompt, unfinished("~ # ")), None);
    let rested = prompt.wakes_at().unwrap();
    assert_eq!(prompt.on_time(rested), Some(Verdict::Met));
    assert_eq!(prompt.wakes_at(), None);
}

const OOPS: [&str; 3] = [
    "[    1.000000] BUG: kernel NULL pointer dereference, address: 0000000000000000",
    "[    1.000001] RIP: 0010:sysrq_handle_crash+0x16/0x20",
    "[    1.000002] ---[ end trace 0000000000000000 ]---",
];
const PANIC: &str = "[    1.000003] Kernel panic - not syncing: Fatal exception";

#[test]
fn fatal_trouble_fails_when_its_report_is_complete() {
    let mut fatal = watch(&["after"], &[], KernelErrors::Fatal);
    let said = [OOPS[0], "after all this was expected", OOPS[1], OOPS[2]];
    assert_eq!(lines(&mut fatal, &said), Some((Verdict::Failed, 3)));
    let failure = fatal.failure().unwrap();
    assert!(failure.contains("NULL pointer dereference"), "{failure}");
}

#[test]
fn fatal_trouble_fails_when_its_report_goes_quiet_or_the_vm_ends() {
    let mut silent = watch(&[], &[], KernelErrors::Fatal);
    assert_eq!(lines(&mut silent, &OOPS[..2]), None);
    let quiet = silent.wakes_at().unwrap();
    assert_eq!(silent.on_time(quiet), Some(Verdict::Failed));
    let mut ended = watch(&[], &[], KernelErrors::Fatal);
    assert_eq!(lines(&mut ended, &OOPS[..2]), None);
    assert_eq!(ended.on_end(), Some(Verdict::Failed));
}

#[test]
fn a_fatal_panic_is_a_crash() {
    let mut fatal = watch(&[], &[], KernelErrors::Fatal);
    assert_eq!(lines(&mut fatal, &[PANIC]), None);
    assert_eq!(fatal.on_end(), Some(Verdict::Crashed));
}

#[test]
fn trouble_may_be_told_or_ignored() {
    let mut told = watch(&["the end"], &[], KernelErrors::Report);
    let said = [OOPS[0], OOPS[1], OOPS[2], PANIC, "the end"];
    assert_eq!(lines(&mut told, &said), Some((Verdict::Met, 4)));
    let trouble = told.kernel_trouble().unwrap().to_string();
    assert!(
        trouble.starts_with("the guest's kernel reported 2 errors: [    1.000000] BUG: "),
        "{trouble}"
    );
    let mut ignored = watch(&["end"], &[], KernelErrors::Ignore);
    lines(&mut ignored, &said);
    assert_eq!(ignored.kernel_trouble(), None);
}

#[test]
fn nothing_is_wanted_by_default() {
    assert!(Wanted::default().is_nothing());
    for kernel_errors in [KernelErrors::Fatal, KernelErrors::Report] {
        let wanted = Wanted {
            kernel_errors: Some(kernel_errors),
            ..Wanted::default()
        };
        assert!(!wanted.is_nothing());
    }
}
