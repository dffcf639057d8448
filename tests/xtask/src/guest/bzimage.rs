//! The ELF `vmlinux` inside a bzImage, decompressed by the Debian program for whatever packed it.
//!
//! Header fields: Linux `Documentation/arch/x86/boot.rst`, "The Real-Mode Kernel Header".

use std::fs;
use std::io::{Read, Write};
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};

use crate::debian::{self, Program};

/// "HdrS", at `header` (0x202).
const MAGIC: (usize, &[u8]) = (0x202, b"HdrS");
/// `setup_sects`: 512-byte sectors of real-mode code after the boot sector; 0 means 4.
const SETUP_SECTS: usize = 0x1f1;
/// `payload_offset`, from the beginning of the protected-mode code (protocol 2.08).
const PAYLOAD_OFFSET: usize = 0x248;
/// `payload_length` (protocol 2.08).
const PAYLOAD_LENGTH: usize = 0x24c;

/// How a payload is packed: its first bytes, the program that unpacks it, and the length that the kernel's build
/// appends to formats which do not carry it themselves.
#[derive(Debug)]
struct Packing {
    magic: &'static [u8],
    program: Program,
    appended: usize,
}

const PACKINGS: [Packing; 4] = [
    Packing {
        magic: b"\x28\xb5\x2f\xfd",
        program: Program("zstd", "zstd"),
        appended: 4,
    },
    Packing {
        magic: b"\x02\x21\x4c\x18",
        program: Program("lz4", "lz4"),
        appended: 4,
    },
    Packing {
        magic: b"\xfd7zXZ\0",
        program: Program("xz", "xz-utils"),
        appended: 4,
    },
    Packing {
        magic: b"\x1f\x8b",
        program: Program("gzip", "gzip"),
        appended: 0,
    },
];

/// Writes the ELF kernel inside the bzImage `from` to `to`.
pub fn extract_vmlinux(from: &Path, to: &Path) -> Result<()> {
    let image = fs::read(from).with_context(|| from.display().to_string())?;
    let payload = payload(&image)
        .with_context(|| format!("{} is not a bzImage with a payload", from.display()))?;
    let payload = &image[payload];
    let packing = PACKINGS
        .iter()
        .find(|packing| payload.starts_with(packing.magic))
        .with_context(|| format!("{} is packed in a way this does not know", from.display()))?;
    debian::require(&[packing.program])?;
    let elf = unpack(packing, &payload[..payload.len() - packing.appended])?;
    if !elf.starts_with(b"\x7fELF") {
        bail!("what {} unpacks to is not an ELF kernel", from.display());
    }
    // The last four bytes say how long it must be (gzip's own trailer too).
    let length = payload
        .last_chunk()
        .map(|bytes| u32::from_le_bytes(*bytes))
        .unwrap_or_default();
    if u32::try_from(elf.len()) != Ok(length) {
        bail!(
            "{} unpacks to {} bytes, and says it is {length}",
            from.display(),
            elf.len()
        );
    }
    fs::write(to, elf)?;
    Ok(())
}

/// Where the payload is in the image.
fn payload(image: &[u8]) -> Option<Range<usize>> {
    let u32_at = |offset: usize| {
        let bytes = image.get(offset..offset + 4)?.first_chunk()?;
        usize::try_from(u32::from_le_bytes(*bytes)).ok()
    };
    if image.get(MAGIC.0..)?.get(..4)? != MAGIC.1 {
        return None;
    }
    let sectors = match *image.get(SETUP_SECTS)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let begin = ((sectors + 1) * 512).checked_add(u32_at(PAYLOAD_OFFSET)?)?;
    let end = begin.checked_add(u32_at(PAYLOAD_LENGTH)?)?;
    (end <= image.len() && end - begin > 4).then_some(begin..end)
}

fn unpack(packing: &Packing, data: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new(packing.program.0)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context(packing.program.0)?;
    let (input, output) = (child.stdin.take(), child.stdout.take());
    let (mut input, mut output) = input.zip(output).context("no pipes")?;
    let mut unpacked = Vec::new();
    thread::scope(|scope| -> Result<()> {
        let feeder = scope.spawn(move || input.write_all(data));
        output.read_to_end(&mut unpacked)?;
        // The program stops reading at the end of its format; whether it was content tells its status.
        let _ = feeder.join();
        Ok(())
    })?;
    let status = child.wait()?;
    if !status.success() {
        bail!("{} ended with {status}", packing.program.0);
    }
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bzImage with one setup sector and `payload` after `offset` bytes of code.
    fn image(offset: u32, payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[SETUP_SECTS] = 1;
        image[MAGIC.0..MAGIC.0 + 4].copy_from_slice(MAGIC.1);
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&offset.to_le_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        image.extend(vec![0xcc; usize::try_from(offset).unwrap()]);
        image.extend(payload);
        image
    }

    #[test]
    fn the_payload_is_where_the_header_says() {
        let image = image(7, b"payload");
        assert_eq!(&image[payload(&image).unwrap()], b"payload");
    }

    #[test]
    fn a_header_that_points_outside_is_refused() {
        let mut image = image(7, b"payload");
        image.pop();
        assert_eq!(payload(&image), None);
        assert_eq!(payload(b"short"), None);
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&[0xff; 4]);
        assert_eq!(payload(&image), None);
    }
}
