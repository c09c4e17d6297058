//! Which slot of a Redis Cluster a command belongs to.

use ::redis::{Arg, Cmd};

pub(super) const SLOTS: u16 = 16_384;

/// The slot of the command's first key; `None` for commands without keys.
///
/// Commands whose keys come later than usual are not sent from here, but for scripts. A message
/// goes over one node, as a key would, so that messages on one channel keep their order.
pub(super) fn of(command: &Cmd) -> Option<u16> {
    let mut arguments = command.args_iter().map(|argument| match argument {
        Arg::Simple(bytes) => bytes,
        _ => b"",
    });
    let name = arguments.next()?;
    let is_one_of =
        |names: &[&str]| names.iter().any(|it| name.eq_ignore_ascii_case(it.as_bytes()));
    let key = if is_one_of(&["EVALSHA", "EVAL"]) {
        let keys = arguments.nth(1)?;
        arguments.next().filter(|_| keys != b"0")
    } else if is_one_of(&["PING", "TIME", "INFO", "SCRIPT", "CLUSTER"]) {
        None
    } else {
        arguments.next()
    };
    key.map(of_key)
}

/// What is in the first pair of braces decides, or else the whole key.
fn of_key(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let length = rest.iter().position(|byte| *byte == b'}')?;
        (length > 0).then(|| &rest[..length])
    });
    crc16(tag.unwrap_or(key)) % SLOTS
}

/// CRC-16/XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    const TABLE: [u16; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut crc = (byte as u16) << 8;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
                bit += 1;
            }
            table[byte] = crc;
            byte += 1;
        }
        table
    };
    bytes.iter().fold(0, |crc, byte| (crc << 8) ^ TABLE[usize::from((crc >> 8) as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    use ::redis::cmd;

    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        // As `CLUSTER KEYSLOT` answers.
        for (key, slot) in [
            ("foo", 12_182),
            ("bar", 5_061),
            ("{user1000}.following", 3_443),
            ("user1000", 3_443),
            ("foo{bar}{zap}", 5_061),
            ("foo{{bar}}zap", 4_015),
        ] {
            assert_eq!(of_key(key.as_bytes()), slot, "{key}");
        }
        assert_eq!(of_key(b"foo{}{bar}"), crc16(b"foo{}{bar}") % SLOTS, "no tag");
    }

    #[test]
    fn a_command_belongs_to_its_first_key() {
        let foo = Some(12_182);
        assert_eq!(of(cmd("GET").arg("foo")), foo);
        assert_eq!(of(cmd("set").arg("foo").arg("bar")), foo);
        assert_eq!(of(cmd("PUBLISH").arg("foo").arg("bar")), foo);
        assert_eq!(of(cmd("EVALSHA").arg("abc").arg(2).arg("foo").arg("bar")), foo);
        assert_eq!(of(cmd("EVALSHA").arg("abc").arg(0).arg("foo")), None);
        assert_eq!(of(cmd("SCRIPT").arg("LOAD").arg("return 1")), None);
        assert_eq!(of(&cmd("PING")), None);
        assert_eq!(of(&Cmd::new()), None);
    }
}
