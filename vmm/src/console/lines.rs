//! Console bytes as lines of text, for those who read them as such.
//!
//! A pure state machine. A line ends with a line feed; carriage returns, other control characters and
//! escape sequences (ECMA-48: colours, cursor movement, titles) are left out, and what is not UTF-8 is
//! replaced. The guest is not trusted: a line is cut at [`LINE_MAX`], and no escape sequence reaches
//! beyond its line.

use anstream::adapter::strip_bytes;

/// Most bytes of a line, as the guest sends it; a longer one goes on as a further line.
pub(crate) const LINE_MAX: usize = 4096;

/// The line that has not ended yet.
#[derive(Debug, Default)]
pub(super) struct Lines {
    line: Vec<u8>,
}

impl Lines {
    /// Takes bytes up to the end of a line, or all of them: how many, and the line if it has ended.
    pub(super) fn take(&mut self, bytes: &[u8]) -> (usize, Option<String>) {
        let room = LINE_MAX - self.line.len();
        let part = &bytes[..bytes.len().min(room)];
        match part.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                self.line.extend_from_slice(&part[..end]);
                (end + 1, Some(self.end()))
            }
            None => {
                self.line.extend_from_slice(part);
                let cut = (self.line.len() == LINE_MAX).then(|| self.end());
                (part.len(), cut)
            }
        }
    }

    /// What there is of a line that has not ended: a beginning of what it will be.
    pub(super) fn rest(&self) -> Option<String> {
        (!self.line.is_empty()).then(|| plain(whole_characters(&self.line)))
    }

    fn end(&mut self) -> String {
        let text = plain(&self.line);
        self.line.clear();
        text
    }
}

/// Without a last character that has only begun.
fn whole_characters(raw: &[u8]) -> &[u8] {
    let last = raw.utf8_chunks().last().map(|chunk| chunk.invalid());
    let begun =
        last.filter(|bytes| str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none()));
    &raw[..raw.len() - begun.map_or(0, <[u8]>::len)]
}

fn plain(raw: &[u8]) -> String {
    // In this order: behind a broken character, an escape would pass as part of it.
    let text = String::from_utf8_lossy(raw);
    let bytes = strip_bytes(text.as_bytes()).into_vec();
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    text.retain(|c| c == '\t' || !c.is_control());
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All lines of the bytes, given in pieces of `size`, and the rest.
    fn split(bytes: &[u8], size: usize) -> (Vec<String>, Option<String>) {
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        for mut piece in bytes.chunks(size) {
            while !piece.is_empty() {
                let (taken, line) = lines.take(piece);
                piece = &piece[taken..];
                found.extend(line);
            }
        }
        let rest = lines.rest();
        (found, rest)
    }

    #[test]
    fn lines_end_with_a_line_feed_however_they_come() {
        for size in 1..20 {
            let (lines, rest) = split(b"one\r\n\ntwo\r\r\nlogin: ", size);
            assert_eq!(lines, ["one", "", "two"]);
            assert_eq!(rest.as_deref(), Some("login: "));
        }
        assert_eq!(split(b"", 1), (vec![], None));
    }

    #[test]
    fn escapes_and_control_characters_are_left_out() {
        for (raw, plain) in [
            (&b"\x1b[1;32mok\x1b[0m done\n"[..], "ok done"),
            (b"\x1b]0;a title\x07# \n", "# "),
            (b"\x1b]0;a title\x1b\\# \n", "# "),
            (b"\x1b(B\x1b[6n\x1b[?25lx\x07\x08\0y\x7f\n", "xy"),
            (b"tab\there\n", "tab\there"),
            ("größe ✓\n".as_bytes(), "größe ✓"),
            (b"bad \xff\xc3\n", "bad \u{fffd}\u{fffd}"),
        ] {
            assert_eq!(split(raw, 3).0, [plain]);
        }
    }

    #[test]
    fn an_open_escape_hides_no_more_than_its_line() {
        let (lines, rest) = split(b"a\x1b]0;never ends\nb\n\x1b[", 4);
        assert_eq!(lines, ["a", "b"]);
        assert_eq!(rest.as_deref(), Some(""));
    }

    #[test]
    fn a_long_line_is_cut() {
        let (lines, rest) = split(&[b'x'; LINE_MAX * 2 + 1], 1000);
        assert_eq!(
            lines.iter().map(String::len).collect::<Vec<_>>(),
            [LINE_MAX; 2]
        );
        assert_eq!(rest.as_deref(), Some("x"));
    }

    proptest! {
        #[test]
        fn a_line_only_grows(bytes in proptest::collection::vec(
            prop_oneof![any::<u8>(), Just(0x1b), Just(b'['), Just(b'm'), Just(0xc3), Just(0xa9)], 0..40,
        )) {
            let (mut lines, mut before) = (Lines::default(), String::new());
            for byte in bytes.iter().filter(|byte| **byte != b'\n') {
                lines.take(&[*byte]);
                let now = lines.rest().unwrap();
                prop_assert!(now.starts_with(&before), "{before:?}, {now:?}");
                before = now;
            }
        }

        #[test]
        fn any_bytes_in_any_pieces_give_the_same_lines(
            bytes in proptest::collection::vec(
                prop_oneof![any::<u8>(), Just(b'\n'), Just(0x1b), Just(b'[')], 0..300),
            size in 1..50_usize,
        ) {
            let (lines, rest) = split(&bytes, size);
            prop_assert_eq!((&lines, &rest), (&split(&bytes, 300).0, &split(&bytes, 300).1));
            for line in lines.iter().chain(&rest) {
                prop_assert!(!line.chars().any(|c| c.is_control() && c != '\t'));
            }
        }
    }
}
