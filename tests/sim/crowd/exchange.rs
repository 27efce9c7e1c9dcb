//! What members say to each other: records that are new, and comparisons of what they hold.

use super::*;

impl Net {
    pub(super) fn compare(&mut self, node: usize, with: usize) {
        // A second one begins while the first is stuck, as in `service/records`.
        let running = self.members[node].asking.get(&with);
        let busy = running.is_some_and(|asking| self.now < asking.since + STUCK);
        if self.members[node].online.is_none() || self.members[node].silent || busy {
            return;
        }
        let hash = self.hash(node);
        let asking = Asking {
            records: self.records(node).clone(),
            salt: self.dice.roll().to_be_bytes(),
            differing: None,
            moved: false,
            since: self.now,
            number: 0,
        };
        self.members[node].asking.insert(with, asking);
        self.ask(node, with, Message::Compare(hash));
    }

    fn ask(&mut self, node: usize, with: usize, message: Message) {
        self.send(node, with, message);
        self.number += 1;
        let number = self.number;
        if let Some(asking) = self.members[node].asking.get_mut(&with) {
            asking.number = number;
        }
        self.later(QUESTION, Event::Overdue(node, with, false, number));
    }

    /// The next question of a comparison, or its end.
    fn go_on(&mut self, node: usize, with: usize) {
        let Some(asking) = self.members[node].asking.get_mut(&with) else {
            return;
        };
        let differing = asking
            .differing
            .get_or_insert_with(|| Differing::new(asking.records.index(), asking.salt));
        let (parts, salt) = (differing.question(), asking.salt);
        let lacking: Vec<Short> = differing.lacking.iter().copied().collect();
        let want = if parts.is_empty() && !asking.moved {
            lacking
        } else {
            Vec::new()
        };
        if !parts.is_empty() || !want.is_empty() {
            asking.moved = parts.is_empty();
            return self.ask(node, with, Message::Ranges(Question { salt, parts, want }));
        }
        let moved = asking.moved;
        let beyond = std::mem::take(&mut differing.beyond);
        let held = asking.records.verified();
        let gives: Vec<Verified> = held
            .filter(|record| beyond.contains(&short(&record.digest())))
            .collect();
        let sends = !gives.is_empty();
        if sends {
            self.push(node, with, gives);
        }
        self.members[node].asking.remove(&with);
        if moved || sends {
            let after = 2 * PASS_ON;
            self.later(after, Event::Compare(node, with));
        }
    }

    pub(super) fn arrives(&mut self, from: usize, to: usize, message: Message) {
        if !self.hear_each_other(from, to) {
            return;
        }
        match message {
            Message::Push(records) => {
                if !self.members[to].silent {
                    self.take(to, Some(from), &records);
                }
                self.send(to, from, Message::Taken);
            }
            Message::Taken => {
                let open = &mut self.members[to].open;
                let first = open.iter().find(|(of, _)| *of == from).copied();
                first.map(|first| open.remove(&first));
            }
            Message::Compare(hash) => {
                let same = self.members[to].silent || self.hash(to) == hash;
                if same {
                    let (peer, id, now) = (self.peer(from), self.id, self.instant());
                    self.members[to].spread.agreed(peer, id, hash, now);
                }
                let said = if same {
                    Message::Same
                } else {
                    Message::Different
                };
                self.send(to, from, said);
            }
            Message::Same => {
                self.members[to].asking.remove(&from);
            }
            Message::Different => self.go_on(to, from),
            Message::Ranges(question) => {
                let records = self.records(to);
                let wanted: Vec<Verified> = match question.want.as_slice() {
                    [] => Vec::new(),
                    want => records
                        .verified()
                        .filter(|record| want.contains(&short(&record.digest())))
                        .collect(),
                };
                let said = Answer {
                    parts: answer(records.index(), question.salt, &question.parts),
                    records: wanted.iter().map(|r| r.signed().clone()).collect(),
                };
                self.send(to, from, Message::Found(said, wanted));
            }
            Message::Found(said, records) => {
                if !records.is_empty() {
                    self.take(to, Some(from), &records);
                }
                if let Some(asking) = self.members[to].asking.get_mut(&from) {
                    if let Some(differing) = &mut asking.differing {
                        differing.answered(asking.records.index(), &said.parts);
                    }
                    self.go_on(to, from);
                }
            }
        }
    }
}
