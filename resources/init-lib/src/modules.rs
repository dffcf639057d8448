//! Kernel modules: which one drives a device and what it needs, from the indices that depmod(8) makes
//! (modules.dep(5), modules.alias(5), modules.softdep(5)).

/// The texts of the indices of one directory of modules.
#[derive(Debug)]
pub struct Index<'a> {
    /// `modules.dep`.
    pub dependencies: &'a [u8],
    /// `modules.alias`.
    pub aliases: &'a [u8],
    /// `modules.softdep`.
    pub soft: &'a [u8],
}

impl<'a> Index<'a> {
    /// The files of a module and of all it needs, each before those that need it; none where there is no
    /// such module.
    pub fn files(&self, name: &[u8]) -> Option<impl Iterator<Item = &'a [u8]> + use<'a>> {
        let line = self.line(name)?;
        let mut files = words(line);
        let own = files.next()?;
        let own = own.strip_suffix(b":").unwrap_or(own);
        // Listed in the order of need: the last one needs nothing.
        let mut needed: alloc::vec::Vec<&[u8]> = files.collect();
        needed.reverse();
        Some(needed.into_iter().chain([own]))
    }

    /// The modules that answer to an alias, such as a device's.
    pub fn behind<'b>(&'b self, alias: &'b [u8]) -> impl Iterator<Item = &'a [u8]> + 'b {
        aliases(self.aliases)
            .filter_map(move |(pattern, name)| matches(pattern, alias).then_some(name))
    }

    /// The modules that must be there before `name`, though it does not link to them.
    pub fn before<'b>(&'b self, name: &'b [u8]) -> impl Iterator<Item = &'a [u8]> + 'b {
        lines(self.soft)
            .filter_map(|line| line.strip_prefix(b"softdep "))
            .filter(move |line| {
                words(line)
                    .next()
                    .is_some_and(|first| same_name(first, name))
            })
            .flat_map(|line| {
                words(line)
                    .skip_while(|word| *word != b"pre:")
                    .skip(1)
                    .take_while(|word| *word != b"post:")
            })
    }

    /// The line of `modules.dep` that is about the module.
    fn line(&self, name: &[u8]) -> Option<&'a [u8]> {
        lines(self.dependencies).find(|line| {
            let file = words(line).next().unwrap_or_default();
            same_name(module_name(file), name)
        })
    }
}

/// The lines of a text.
pub fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n')
}

fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|byte| *byte == b' ')
        .filter(|word| !word.is_empty())
}

/// `alias PATTERN MODULE`.
pub fn aliases(text: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    lines(text).filter_map(|line| {
        let mut rest = words(line.strip_prefix(b"alias ")?);
        Some((rest.next()?, rest.next()?))
    })
}

/// `kernel/fs/ext4/ext4.ko.xz:` is ext4.
fn module_name(file: &[u8]) -> &[u8] {
    let name = file.rsplit(|byte| *byte == b'/').next().unwrap_or(file);
    let dot = name.iter().position(|byte| *byte == b'.');
    &name[..dot.unwrap_or(name.len())]
}

/// Dashes and underscores are the same in module names.
fn same_name(one: &[u8], other: &[u8]) -> bool {
    let plain = |byte: &u8| if *byte == b'-' { b'_' } else { *byte };
    one.len() == other.len() && one.iter().map(plain).eq(other.iter().map(plain))
}

/// Whether a shell pattern of `*`, `?` and `[…]` matches all of `text`, dashes being underscores.
#[must_use]
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on when the last star has to take one more.
    let mut star = None;
    loop {
        let step = pattern.get(p).and_then(|first| match (first, text.get(t)) {
            (b'*', _) => {
                star = Some((p + 1, t));
                Some((p + 1, t))
            }
            (b'?', Some(_)) => Some((p + 1, t + 1)),
            (b'[', Some(byte)) => {
                let end = p + pattern[p..].iter().position(|byte| *byte == b']')?;
                in_set(&pattern[p + 1..end], *byte).then_some((end + 1, t + 1))
            }
            (literal, Some(byte)) if same_name(&[*literal], &[*byte]) => Some((p + 1, t + 1)),
            _ => None,
        });
        match (step, star) {
            (Some(next), _) => (p, t) = next,
            (None, _) if p == pattern.len() && t == text.len() => return true,
            (None, Some((after, from))) if from < text.len() => {
                (p, t) = (after, from + 1);
                star = Some((after, from + 1));
            }
            _ => return false,
        }
    }
}

/// `0-9a` contains 5.
fn in_set(set: &[u8], byte: u8) -> bool {
    match set {
        [low, b'-', high, rest @ ..] => (*low..=*high).contains(&byte) || in_set(rest, byte),
        [one, rest @ ..] => *one == byte || in_set(rest, byte),
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    const INDEX: Index<'_> = Index {
        dependencies: b"kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko kernel/lib/crc16.ko\n\
            kernel/lib/crc16.ko:\nkernel/drivers/char/hw_random/virtio-rng.ko:\n",
        aliases: b"# Aliases\nalias virtio:d00000004v* virtio_rng\nalias fs-ext4 ext4\n\
            alias acpi*:LNRO0005:* virtio_mmio\n",
        soft: b"softdep ext4 pre: crc32c other post: late\n",
    };

    #[test]
    fn a_module_comes_after_what_it_needs() {
        let files: Vec<_> = INDEX.files(b"ext4").unwrap().collect();
        let expected: [&[u8]; 3] = [
            b"kernel/lib/crc16.ko",
            b"kernel/fs/jbd2/jbd2.ko",
            b"kernel/fs/ext4/ext4.ko.xz",
        ];
        assert_eq!(files, expected);
        assert_eq!(INDEX.files(b"virtio_rng").unwrap().count(), 1);
        assert!(INDEX.files(b"ext").is_none());
        let before: Vec<_> = INDEX.before(b"ext4").collect();
        assert_eq!(before, [&b"crc32c"[..], b"other"]);
        assert_eq!(INDEX.before(b"ext3").count(), 0);
    }

    #[test]
    fn devices_find_their_modules() {
        let first = |alias| INDEX.behind(alias).next();
        assert_eq!(
            first(b"virtio:d00000004v554D4551"),
            Some(&b"virtio_rng"[..])
        );
        assert_eq!(first(b"acpi:LNRO0005:"), Some(&b"virtio_mmio"[..]));
        assert_eq!(first(b"fs-ext4"), Some(&b"ext4"[..]));
        assert_eq!(first(b"fs-ext3"), None);
    }

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("*", "", true),
            ("a*", "abc", true),
            ("a*c*e", "abcde", true),
            ("a*c*e", "abcd", false),
            ("*a*a", "aaaa", true),
            ("?b", "ab", true),
            ("?", "", false),
            ("[0-9a]x", "7x", true),
            ("[0-9a]x", "ax", true),
            ("[0-9a]x", "bx", false),
            ("[", "[", false),
            ("a_b", "a-b", true),
            ("ab", "abc", false),
        ] {
            let matched = matches(pattern.as_bytes(), text.as_bytes());
            assert_eq!(matched, expected, "{pattern} {text}");
        }
        // No pattern takes long: each star goes back once.
        let text = [b'a'; 4000];
        assert!(!matches(b"*a*a*a*a*a*a*a*b", &text));
    }
}
