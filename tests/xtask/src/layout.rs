//! The order of the code in mvm's file. The kernel maps a page that is run and the 64 kB around it, so functions that
//! are scattered over the file bring nearly all of it into memory. `cli/layout.ld` puts those together which a boot
//! and an idle VM run; here it is written anew, from what valgrind sees such a VM do.
//!
//! The linker's map says which section of which file each address comes from. Names of sections change from build to
//! build in their hashes, so these are left open, and an entry that matches nothing any more does no harm.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail};

use crate::bench::{memory, process::Timed, programs};
use crate::debian::{self, Program};
use crate::workspace;

/// The kinds of sections that are put in order: of the linker's output, and the start of their names in its input.
const KINDS: [&str; 2] = [".rodata", ".text"];

/// Has a part in every start, and valgrind runs one of its own instead.
const UNSEEN: &str = "*libc*.a:strcmp-*.o(.text .text.*)";

const HEAD: &str = "\
/*
 * What a boot and an idle VM run and read, put together: see tests/xtask/src/layout.rs.
 * Written by `cargo xtask layout`.
 */
";

/// Writes the order; its path.
pub fn layout() -> Result<PathBuf> {
    debian::require(&[Program("valgrind", "valgrind")])?;
    let directory = workspace::target().join("layout");
    fs::create_dir_all(&directory)?;
    let map = directory.join("mvm.map");
    let mvm = workspace::release_with_map("mvm", &map)?;
    let sections = sections(&fs::read_to_string(&map)?);
    let trace = directory.join("trace");
    run_idle(&mvm, &directory, &trace)?;
    let entry = entry_point(&fs::read(&mvm)?).context("no ELF file")?;
    let used = used(BufReader::new(fs::File::open(&trace)?), entry, &sections)?;
    let script = workspace::root().join("cli/layout.ld");
    fs::write(&script, text(&used)?)?;
    Ok(script)
}

/// Runs mvm with an idle guest until it has come to rest, and writes down each access to memory.
fn run_idle(mvm: &Path, directory: &Path, trace: &Path) -> Result<()> {
    programs::guest(directory, "IDLE", 0)?;
    let Some((_, devices)) = memory::devices(directory)?.pop() else {
        bail!("no devices to measure with");
    };
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=lackey", "--trace-mem=yes"])
        .arg(format!("--log-file={}", trace.display()))
        .arg(mvm)
        .args(["--mem", "128M", "--kernel"])
        .arg(directory.join("IDLE"))
        .args(devices);
    let mut process = Timed::spawn(command)?;
    process.wait_for(b'h')?;
    thread::sleep(memory::REST * 5);
    Ok(())
}

/// A section of one of the linker's input files, as its map has it.
#[derive(Debug, PartialEq, Eq)]
struct Section {
    end: u64,
    file: String,
    name: String,
}

/// The sections by their address in the program. A line of the map is an address, where it is loaded, a size, an
/// alignment, and then the output's section, `file:(section)` further right, or a symbol.
fn sections(map: &str) -> BTreeMap<u64, Section> {
    let section = |line: &str| {
        let mut words = line.split_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        let size = u64::from_str_radix(words.nth(1)?, 16).ok()?;
        let (file, name) = words.nth(1)?.strip_suffix(')')?.split_once(":(")?;
        let section = Section {
            end: address.checked_add(size)?,
            file: file.to_owned(),
            name: name.to_owned(),
        };
        (size > 0).then_some((address, section))
    };
    map.lines().filter_map(section).collect()
}

/// Where an ELF file of 64 bits starts to run.
fn entry_point(elf: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(*elf.get(24..)?.first_chunk()?))
}

/// The patterns of the sections that a trace touches, by kind. Its first instruction is the program's.
fn used(
    trace: impl BufRead,
    entry: u64,
    sections: &BTreeMap<u64, Section>,
) -> Result<BTreeMap<&'static str, BTreeSet<String>>> {
    let mut base = None;
    let mut used = BTreeMap::from([(".text", BTreeSet::from([UNSEEN.to_owned()]))]);
    for line in trace.lines() {
        let line = line?;
        // `I  04001000,3`, ` L 1fff000720,8`: valgrind's own lines begin with its process.
        let Some((_, access)) = line.split_once(' ').filter(|_| !line.starts_with('=')) else {
            continue;
        };
        let Some(address) = access
            .split_whitespace()
            .last()
            .and_then(|access| access.split(',').next())
            .and_then(|address| u64::from_str_radix(address, 16).ok())
        else {
            continue;
        };
        let base = *base.get_or_insert(address.wrapping_sub(entry));
        let address = address.wrapping_sub(base);
        let Some((_, section)) = sections.range(..=address).next_back() else {
            continue;
        };
        let kind = KINDS
            .into_iter()
            .find(|kind| section.name.starts_with(kind));
        if let Some(kind) = kind.filter(|_| address < section.end) {
            let patterns = used.entry(kind).or_default();
            patterns.extend(pattern(kind, &section.file, &section.name));
        }
    }
    Ok(used)
}

/// What finds a section in another build too, if anything does.
fn pattern(kind: &str, file: &str, section: &str) -> Option<String> {
    // Constants without a name are numbered through, and those that are merged belong to no file.
    if section.starts_with(".rodata..L") || file == "<internal>" {
        return None;
    }
    let file = file.rsplit('/').next()?;
    if file.contains(".rcgu.o") {
        return Some(format!("*({})", without_hashes(section)));
    }
    let Some((library, member)) = file
        .strip_suffix(')')
        .and_then(|file| file.split_once(".a("))
    else {
        return Some(format!("*{file}({section})"));
    };
    // Some names of libraries have their version in them.
    let library = library.split('-').next()?;
    Some(match member.split_once('-') {
        // One for this processor of several that do the same: another host takes another.
        Some((function, _)) if section != kind => {
            format!("*{library}*.a:{function}-*.o({kind} {kind}.*)")
        }
        _ => format!("*{library}*.a:{member}({section})"),
    })
}

/// A mangled name with what changes left open: `17h0123456789abcdefE` at its end, `CsAbc123_` for each crate, and the
/// number by which LLVM tells namesakes apart.
fn without_hashes(name: &str) -> String {
    const LENGTH: usize = "17h0123456789abcdef".len();
    let mut open = String::new();
    let unnumbered = name.trim_end_matches(|letter: char| letter.is_ascii_digit());
    let numbered = unnumbered.len() < name.len() && unnumbered.ends_with('.');
    let mut rest = if numbered { unnumbered } else { name };
    while let Some(next) = rest.chars().next() {
        let hash = if rest.starts_with("17h") && rest.get(LENGTH..).is_some_and(|end| end == "E") {
            Some(("17h*", LENGTH))
        } else if rest.starts_with("Cs") {
            let end = rest.find(|letter: char| !letter.is_ascii_alphanumeric());
            end.filter(|end| rest[*end..].starts_with('_'))
                .map(|end| ("Cs*", end))
        } else {
            None
        };
        let (text, length) = hash.unwrap_or((&rest[..next.len_utf8()], next.len_utf8()));
        open.push_str(text);
        rest = &rest[length..];
    }
    if numbered {
        open.push('*');
    }
    open
}

fn text(used: &BTreeMap<&str, BTreeSet<String>>) -> Result<String> {
    let mut script = HEAD.to_owned();
    for kind in KINDS {
        // Beside what each start uses of the linker's own: merged constants, and the first and last code.
        let place = if kind == ".text" {
            "AFTER .fini"
        } else {
            "BEFORE .rodata"
        };
        writeln!(script, "\nSECTIONS {{\n  {kind}.start : {{")?;
        for pattern in used.get(kind).into_iter().flatten() {
            writeln!(script, "    {pattern}")?;
        }
        writeln!(script, "  }}\n}}\nINSERT {place};")?;
    }
    Ok(script)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_leaves_out_what_changes_from_build_to_build() {
        let object = "target/deps/mvm-b55a271236705be1.mvm.9712906bd1c2bfef-cgu.0.rcgu.o";
        let libc = "usr/lib/x86_64-linux-gnu/libc.a";
        for (kind, file, section, expected) in [
            (
                ".text",
                object,
                ".text._ZN3mvm4main17h83b0ef249f150004E",
                Some("*(.text._ZN3mvm4main17h*E)"),
            ),
            (
                ".text",
                object,
                ".text._RNvNtCsjrHSEGnQ3l9_3std2rt4init",
                Some("*(.text._RNvNtCs*_3std2rt4init)"),
            ),
            (
                ".text",
                object,
                ".text._RNvNtCsjrHSEGnQ3l9_3std2rt4init.2654",
                Some("*(.text._RNvNtCs*_3std2rt4init.*)"),
            ),
            (".rodata", object, ".rodata..Lanon.b2040a61.1528", None),
            (".rodata", "<internal>", ".rodata.str1.1", None),
            (
                ".text",
                &format!("{libc}(malloc.o)"),
                ".text",
                Some("*libc*.a:malloc.o(.text)"),
            ),
            (
                ".text",
                &format!("{libc}(strlen-avx2.o)"),
                ".text.avx",
                Some("*libc*.a:strlen-*.o(.text .text.*)"),
            ),
            (
                ".text",
                "usr/lib/libm-2.36.a(e_pow.o)",
                ".text",
                Some("*libm*.a:e_pow.o(.text)"),
            ),
            (".text", "usr/lib/rcrt1.o", ".text", Some("*rcrt1.o(.text)")),
        ] {
            assert_eq!(pattern(kind, file, section).as_deref(), expected, "{file}");
        }
    }

    #[test]
    fn sections_are_found_by_the_addresses_of_a_trace() -> Result<()> {
        let map = "\
             VMA              LMA     Size Align Out     In      Symbol
            1000             1000       30     4 .text
            1000             1000       10     4         a/b.o:(.text)
            1000             1000       10     1                 main
            1010             1010        0     4         a/empty.o:(.text)
            1010             1010       20     4         a/c.o:(.text.of)
            2000             2000        8     4         a/d.o:(.data)
";
        let trace = "==7== Command: mvm\nI  00401004,3\n L 1fff000720,8\nI  0040102f,1\n S 00402000,8\nI  00401030,1\n";
        let used = used(trace.as_bytes(), 0x1004, &sections(map))?;
        let text = used.get(".text").context("nothing")?;
        assert_eq!(
            text.iter().collect::<Vec<_>>(),
            ["*b.o(.text)", "*c.o(.text.of)", UNSEEN]
        );
        assert_eq!(used.len(), 1);
        Ok(())
    }
}
