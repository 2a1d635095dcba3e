//! The Internet checksum (RFC 1071).

use std::net::IpAddr;

/// A sum that is not finished. Adds 16-bit words in the machine's byte order, which the checksum
/// permits, eight bytes at a time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Adds bytes; every call but the last one has an even number of them.
    pub(crate) fn add(mut self, data: &[u8]) -> Self {
        let (wide, tail) = data.as_chunks::<32>();
        let mut lanes = [0u64; 8];
        // A lane of 32 bits takes 2^32 additions to overflow; a frame has 2^11.
        for chunk in wide {
            let (words, _) = chunk.as_chunks::<4>();
            for (lane, word) in lanes.iter_mut().zip(words) {
                *lane += u64::from(u32::from_ne_bytes(*word));
            }
        }
        for lane in lanes {
            self.push(lane);
        }
        let (pairs, odd) = tail.as_chunks::<2>();
        for pair in pairs {
            self.push(u64::from(u16::from_ne_bytes(*pair)));
        }
        if let [last] = odd {
            self.push(u64::from(u16::from_ne_bytes([*last, 0])));
        }
        self
    }

    fn push(&mut self, value: u64) {
        let (sum, carry) = self.0.overflowing_add(value);
        self.0 = sum + u64::from(carry);
    }

    /// The sum folded to 16 bits, in network order, not inverted.
    pub(crate) fn fold(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (sum as u16).to_ne_bytes()
    }

    /// The checksum as it stands in a header.
    pub(crate) fn finish(self) -> [u8; 2] {
        self.fold().map(|byte| !byte)
    }

    /// Whether the bytes, their checksum among them, are sound.
    pub(crate) fn is_sound(self) -> bool {
        self.fold() == [0xff, 0xff]
    }
}

/// The sum of a TCP, UDP or ICMPv6 pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1).
pub(crate) fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, length: usize) -> Sum {
    let sum = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => Sum::default().add(&src.octets()).add(&dst.octets()),
        (IpAddr::V6(src), IpAddr::V6(dst)) => Sum::default().add(&src.octets()).add(&dst.octets()),
        _ => Sum::default(),
    };
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    sum.add(&length.to_be_bytes()).add(&[0, protocol])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slow(data: &[u8]) -> [u8; 2] {
        let mut sum = 0u32;
        for pair in data.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    }

    #[test]
    fn sum_agrees_with_the_definition_at_every_length() {
        let data: Vec<u8> = (0..70_000u32).map(|n| (n * 7 + n / 251) as u8).collect();
        for length in (0..200).chain([1500, 65_535, 70_000]) {
            assert_eq!(
                Sum::default().add(&data[..length]).finish(),
                slow(&data[..length]),
                "{length}"
            );
        }
        let ones = [0xff; 65_535];
        assert_eq!(Sum::default().add(&ones).finish(), slow(&ones));
    }

    #[test]
    fn header_of_rfc_1071_style_example_is_sound() {
        let header = [
            0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8,
            0, 0xc7,
        ];
        assert!(Sum::default().add(&header).is_sound());
    }
}
