//! Scripts as they are written, and as they are played against consoles of a few lines.

use std::time::{Duration, Instant};

use super::*;
use crate::watch::Extent;

const LOGIN: &str = r#"
# Logs in.
expect 'login: $' 3m  # it boots first
send "root\n"
limit 5s
	expect '# $'
send "\e[A\x03\\\"\t\r"   # odd keys
end 1m
"#;

fn script(text: &str) -> Script {
    Script::parse(Path::new("a.script"), text).unwrap()
}

fn refused(text: &str) -> String {
    let error = Script::parse(Path::new("a.script"), text).unwrap_err();
    error.to_string()
}

#[test]
fn steps_are_read_with_their_lines_and_limits() {
    let limit = |text: &str| text.parse::<Limit>().unwrap();
    let expect = |text: &str, time| Action::Expect(text.parse().unwrap(), limit(time));
    let steps: Vec<_> = script(LOGIN)
        .steps
        .into_iter()
        .map(|step| (step.line, step.action))
        .collect();
    assert_eq!(
        steps,
        [
            (3, expect("login: $", "3m")),
            (4, Action::Send("root\n".to_owned())),
            (6, expect("# $", "5s")),
            (7, Action::Send("\x1b[A\x03\\\"\t\r".to_owned())),
            (8, Action::End(limit("1m"))),
        ]
    );
    let written = r#"expect "a\\.b" "#;
    assert_eq!(
        script(written).steps[0].action,
        expect(r"a\.b", "30s"),
        "a pattern may have either quotes"
    );
}

#[test]
fn mistakes_are_named_with_their_line_and_remedy() {
    for (text, said) in [
        ("", "has no step"),
        ("# only a comment\nlimit 3s", "has no step"),
        (
            "\nexpekt 'x'",
            "line 2: 'expekt' is no step; write expect 'REGEX'",
        ),
        ("expect", "line 1: expect needs a text in quotes"),
        ("expect login:", "line 1: expect needs a text in quotes"),
        ("send root", r#"write send "TEXT\n""#),
        ("expect 'x", "the text has no closing '"),
        ("send \"x", "the text has no closing \""),
        ("send \"x\\", "the text has no closing \""),
        ("send \"\\q\"", r#"'\q' means nothing in "…""#),
        ("send \"\\x9\"", r"'\x9"),
        ("send \"\\xff\"", r"'\xff'"),
        ("expect 'a(b'", "'a(b' is not a regular expression"),
        ("expect ''", "an empty pattern"),
        ("expect 'a' soon", "'soon' is not a duration"),
        ("expect 'a' 0s", "'0s' leaves no time"),
        ("limit", "limit needs a duration"),
        ("send 'a' 3s", "'3s' has no place here"),
        ("end\nsend 'a'", "line 2: end is the last step"),
    ] {
        let error = refused(text);
        assert!(error.starts_with("the script a.script"), "{error}");
        assert!(error.contains(said), "{text}: {error}");
        assert!(!error.contains('\n'), "{error:?}");
    }
    let error = Script::read(Path::new("no/such.script")).unwrap_err();
    assert!(error.to_string().contains("no/such.script cannot be read"));
}

/// A script that is played.
struct Play {
    player: Player,
    now: Instant,
}

impl Play {
    fn of(text: &str) -> Self {
        let (mut player, now) = (Player::new(script(text)), Instant::now());
        player.on_start(now);
        Self { player, now }
    }

    /// The guest says this; what is typed then.
    fn hear(&mut self, text: &str, extent: Extent) -> String {
        self.now += Duration::from_secs(1);
        self.player.on_text(self.now, text, extent);
        self.typed()
    }

    fn typed(&mut self) -> String {
        String::from_utf8(self.player.take_typed()).unwrap()
    }

    fn done(&self) -> usize {
        self.player.steps().filter(|it| it.done.is_some()).count()
    }
}

#[test]
fn each_step_begins_behind_the_one_before() {
    let mut play = Play::of("expect 'a'\nexpect 'a'\nexpect '^c'\nexpect 'e'");
    play.hear("xa", Extent::Growing);
    assert_eq!(play.done(), 1);
    play.hear("xay", Extent::Growing);
    assert_eq!(play.done(), 1, "what was found is not found again");
    play.hear("xaya cd", Extent::Whole);
    assert_eq!(play.done(), 2, "^ is the beginning of a line");
    play.hear("cde", Extent::Whole);
    assert_eq!(play.done(), 4, "two steps on one line");
    assert!(play.player.is_done());
    assert_eq!(play.player.deadline(), None);
}

#[test]
fn what_is_typed_follows_what_was_waited_for() {
    let mut play =
        Play::of("send 'x'\nexpect 'login:'\nsend 'a'\nsend 'b'\nexpect '# $'\nsend 'c'");
    assert_eq!(play.typed(), "x", "nothing is waited for before it");
    assert_eq!(play.hear("login: ", Extent::Growing), "ab");
    assert_eq!(play.hear("login: ab", Extent::Whole), "");
    assert_eq!(play.hear("~ # ", Extent::Growing), "");
    assert_eq!(play.hear("~ # ", Extent::Resting), "c");
    assert!(play.player.is_done());
}

#[test]
fn output_that_was_lost_does_no_harm() {
    let mut play = Play::of("expect 'b'\nexpect 'x'");
    play.hear("aab", Extent::Growing);
    // Of another line, and shorter; and then with the old place inside a character.
    play.hear("a", Extent::Growing);
    play.hear("aaéx", Extent::Whole);
    assert_eq!(play.done(), 2);
}

#[test]
fn a_step_that_takes_too_long_is_named() {
    let mut play = Play::of("expect 'a' 10s\nexpect 'b' 2s");
    assert_eq!(
        play.player.deadline(),
        Some(play.now + Duration::from_secs(10))
    );
    play.hear("a", Extent::Whole);
    let deadline = play.now + Duration::from_secs(2);
    assert_eq!(play.player.deadline(), Some(deadline));
    let before = deadline - Duration::from_millis(1);
    assert_eq!(play.player.on_time(before), None);
    assert_eq!(
        play.player.on_time(deadline).unwrap(),
        "script a.script, line 2: 'b' did not come within 2s"
    );
    assert_eq!(
        play.player.waits_for().unwrap(),
        "script a.script, line 2: expect 'b' was not reached"
    );
}

#[test]
fn the_guests_end_is_the_last_step() {
    let mut play = Play::of("expect 'a'\nend 1s");
    // The VM's end is known before its last words are.
    play.player.on_end(play.now);
    assert!(!play.player.is_done());
    play.hear("a", Extent::Whole);
    assert!(play.player.is_done());
    let mut play = Play::of("expect 'a'\nend 1s");
    play.hear("a", Extent::Whole);
    let deadline = play.player.deadline().unwrap();
    assert_eq!(
        play.player.on_time(deadline).unwrap(),
        "script a.script, line 2: the guest did not end within 1s"
    );
    play.player.on_end(play.now);
    assert!(play.player.is_done());
}

#[test]
fn nothing_is_timed_before_the_guest_runs() {
    let player = Player::new(script("expect 'a' 1ms"));
    assert_eq!(player.deadline(), None);
}
