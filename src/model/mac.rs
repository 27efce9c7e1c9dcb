//! Hardware addresses as people and engines write them.

/// A hardware address of one interface: six pairs of hex digits between colons, neither a group's nor all zero.
pub fn unicast(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next()?;
        // The parser of numbers takes a sign, too.
        if part.len() != 2 || part.starts_with('+') {
            return None;
        }
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    let [first, ..] = mac;
    (parts.next().is_none() && first & 1 == 0 && mac != [0; 6]).then_some(mac)
}

/// An address as it is written: `02:62:77:00:00:01`.
pub fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_interface_can_have_is_read_and_nothing_else() {
        assert_eq!(
            unicast("02:62:77:00:00:0A"),
            Some([2, 0x62, 0x77, 0, 0, 10])
        );
        assert_eq!(text([2, 0x62, 0x77, 0, 0, 10]), "02:62:77:00:00:0a");
        for wrong in [
            "",
            "02:62:77:00:00",
            "02:62:77:00:00:01:02",
            "02:62:77:00:00:1",
            "02:62:77:00:00:+1",
            "02:62:77:00:00:0g",
            "02-62-77-00-00-01",
            "03:62:77:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
        ] {
            assert_eq!(unicast(wrong), None, "{wrong:?}");
        }
    }
}
