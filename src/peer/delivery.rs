//! Whether packets arrive where probes do: each answer says how many frames of packets have come under its key.

use std::collections::VecDeque;

/// The most probes whose count of frames is remembered.
const MARKS: usize = 16;
/// Frames of packets none of which arrived, before a path counts as one that carries no packets: fewer may be late.
const LOST: u64 = 8;

/// What an answer tells of the packets before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Enough of them arrived.
    Fine,
    /// Fewer than half arrived: another probe is to tell soon whether any still do.
    Doubt,
    /// None of them arrived.
    Lost,
}

/// What was sent and what arrived under one key.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    /// The probes sent under the key, and the frames of packets sent before each.
    marks: VecDeque<(u64, u64)>,
    /// Frames sent and arrived by the last answer that told something.
    base: Option<(u64, u64)>,
}

impl Delivery {
    /// Another key: nothing was sent or has arrived under it.
    pub(super) fn begin(&mut self) {
        *self = Delivery {
            base: Some((0, 0)),
            ..Delivery::default()
        };
    }

    /// No key: what was sent does not count.
    pub(super) fn forget(&mut self) {
        *self = Delivery::default();
    }

    /// Another path, behind so many frames of packets: they say nothing about this one, and what comes after them does, from
    /// the first answer on.
    pub(super) fn moved(&mut self, sent: u64) {
        self.marks.clear();
        self.base = self.base.map(|(_, arrived)| (sent, arrived));
    }

    /// A probe goes out, behind so many frames of packets.
    pub(super) fn probed(&mut self, token: u64, sent: u64) {
        if self.marks.len() >= MARKS {
            self.marks.pop_front();
        }
        self.marks.push_back((token, sent));
    }

    /// The probe was answered, behind so many frames of packets that arrived. `full`: it was as large as what the path is
    /// held to carry, so that what is lost is not lost by its size.
    pub(super) fn answered(&mut self, token: u64, arrived: u64, full: bool) -> Verdict {
        let Some(at) = self.marks.iter().position(|mark| mark.0 == token) else {
            return Verdict::Fine;
        };
        let Some((_, sent)) = self.marks.remove(at) else {
            return Verdict::Fine;
        };
        let (sent_before, arrived_before) = *self.base.get_or_insert((sent, arrived));
        let (sent_since, arrived_since) = (
            sent.saturating_sub(sent_before),
            arrived.saturating_sub(arrived_before),
        );
        if arrived_since > 0 {
            self.base = Some((sent, arrived));
        }
        match arrived_since {
            _ if sent_since < LOST => Verdict::Fine,
            0 if full => Verdict::Lost,
            _ if arrived_since < sent_since / 2 => Verdict::Doubt,
            _ => Verdict::Fine,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_full_probe_behind_lost_packets_tells_that_none_arrive() {
        let mut delivery = Delivery::default();
        delivery.probed(1, 100);
        let tells = [(1, 90, true, Verdict::Fine)];
        for (token, arrived, full, verdict) in tells {
            assert_eq!(
                delivery.answered(token, arrived, full),
                verdict,
                "the first"
            );
        }
        delivery.probed(2, 200);
        assert_eq!(
            delivery.answered(2, 189, true),
            Verdict::Fine,
            "most arrived"
        );
        delivery.probed(3, 207);
        assert_eq!(
            delivery.answered(3, 189, true),
            Verdict::Fine,
            "seven may be late"
        );
        delivery.probed(4, 300);
        delivery.probed(5, 301);
        assert_eq!(
            delivery.answered(4, 189, false),
            Verdict::Doubt,
            "or too large"
        );
        assert_eq!(delivery.answered(5, 189, true), Verdict::Lost);
        assert_eq!(delivery.answered(5, 189, true), Verdict::Fine, "once");
        assert_eq!(
            delivery.answered(9, 189, true),
            Verdict::Fine,
            "nobody asked"
        );
        delivery.probed(6, 400);
        assert_eq!(
            delivery.answered(6, 190, true),
            Verdict::Doubt,
            "one arrived"
        );
        delivery.begin();
        delivery.probed(7, 20);
        assert_eq!(delivery.answered(7, 0, true), Verdict::Lost, "another key");
        delivery.probed(7, 500);
        delivery.moved(510);
        assert_eq!(
            delivery.answered(7, 0, true),
            Verdict::Fine,
            "of the path before"
        );
        delivery.probed(8, 517);
        delivery.probed(9, 518);
        assert_eq!(delivery.answered(8, 0, true), Verdict::Fine, "seven");
        assert_eq!(delivery.answered(9, 0, true), Verdict::Lost, "eight");
        delivery.moved(518);
        delivery.probed(10, 600);
        assert_eq!(
            delivery.answered(10, 3, true),
            Verdict::Doubt,
            "some that were under way, perhaps"
        );
        delivery.probed(11, 700);
        assert_eq!(delivery.answered(11, 3, true), Verdict::Lost);
        delivery.forget();
        delivery.probed(12, 900);
        assert_eq!(delivery.answered(12, 3, true), Verdict::Fine, "no key");
    }
}
