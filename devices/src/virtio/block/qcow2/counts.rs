//! Where the count of a cluster's uses is. docs/interop/qcow2.txt of QEMU, "Host cluster management". Pure.

/// How an image counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    /// Bytes of a cluster, which are as many of a block of counts.
    pub(super) cluster: u64,
    /// Bits of a count: a power of two, at most 64.
    pub(super) bits: u64,
}

/// The place of one count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// The number of its block, which is the index of the refcount table's entry.
    pub(super) block: u64,
    /// Its first byte within the block.
    pub(super) offset: u64,
    /// How many bytes it is in.
    pub(super) len: usize,
    /// Its bits in each byte.
    mask: u8,
}

impl Counts {
    /// Where the cluster at `at` of the file is counted.
    pub(super) fn place(&self, at: u64) -> Place {
        let number = at / self.cluster;
        let per_block = self.cluster * 8 / self.bits;
        let bit = number % per_block * self.bits;
        let mask = match self.bits {
            // The first is in the lowest bits.
            bits @ 0..8 => ((1 << bits) - 1) << (bit % 8),
            _ => u8::MAX,
        };
        Place {
            block: number / per_block,
            offset: bit / 8,
            len: usize::try_from(self.bits.div_ceil(8)).unwrap_or(8),
            mask,
        }
    }
}

impl Place {
    /// Whether the count is more than none.
    pub(super) fn is_used(&self, bytes: &[u8]) -> bool {
        bytes.iter().any(|byte| byte & self.mask != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_each_width_are_where_the_format_has_them() {
        for (bits, number, block, offset, len, mask) in [
            (1, 0, 0, 0, 1, 0b1),
            (1, 4095, 0, 511, 1, 0b1000_0000),
            (1, 4096, 1, 0, 1, 0b1),
            (2, 5, 0, 1, 1, 0b1100),
            (4, 1, 0, 0, 1, 0b1111_0000),
            (8, 513, 1, 1, 1, 0xff),
            (16, 255, 0, 510, 2, 0xff),
            (16, 256, 1, 0, 2, 0xff),
            (64, 63, 0, 504, 8, 0xff),
        ] {
            let counts = Counts { cluster: 512, bits };
            let place = Place {
                block,
                offset,
                len,
                mask,
            };
            assert_eq!(counts.place(number * 512 + 511), place, "{bits} bits");
        }
    }

    #[test]
    fn neighbours_do_not_count() {
        let place = Counts {
            cluster: 512,
            bits: 2,
        }
        .place(512);
        assert!(place.is_used(&[0b0000_0100]));
        assert!(!place.is_used(&[0b1111_0011]));
    }
}
