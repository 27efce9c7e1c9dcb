//! Requests between members: frames read back as written, what a program says of itself stays within bounds, and whatever a
//! member sends in whatever order, no request is run twice and no more run than may.
#![no_main]

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use byway::model::chunks::Chunks;
use byway::model::id::PeerId;
use byway::model::ranges::{self, Differing};
use byway::model::record::Digest;
use byway::service::requests::dedup::ALL_KEPT;
use byway::service::requests::inflight::{Admit, Arrival, Inflight, RUNNING};
use byway::wire::agent::Agent;
use byway::wire::presence::Ages;
use byway::wire::ranges::{Answer, Question};
use byway::wire::service::{Measure, Measured, ServiceAnswer, ServiceRequest, parse_clock};
use byway::wire::summary;
use libfuzzer_sys::fuzz_target;

static HELD: LazyLock<Chunks<Digest, ()>> = LazyLock::new(|| {
    let mut held = Chunks::default();
    for n in 0..=255_u8 {
        held.insert([n.wrapping_mul(37); 32], ());
    }
    held
});
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

fuzz_target!(|data: &[u8]| {
    if let Ok(request) = ServiceRequest::parse(data.to_vec()) {
        assert_eq!(request.encode(), data);
        let _ = parse_clock(&request.body);
    }
    if let Some(held) = summary::parse_question(data) {
        assert!(held.len() <= summary::MAX_SUBNETS && data.starts_with(&summary::question(&held)));
        assert!(summary::parse_answer(data, held.len()).is_some());
    }
    if let Some(ages) = Ages::decode(data) {
        assert_eq!(ages.encode(), data);
    }
    if let Ok(answer) = ServiceAnswer::parse(data.to_vec()) {
        assert_eq!(ServiceAnswer::parse(answer.encode()), Ok(answer));
    }
    if let Some(question) = Measure::parse(data) {
        assert_eq!(Measure::parse(&question.encode()), Some(question));
        assert!(data.starts_with(&question.encode()));
    }
    if let Some(measured) = Measured::parse(data) {
        assert!(data.starts_with(&measured.encode()));
    }
    if let Some(question) = Question::parse(data) {
        let said = ranges::answer(&HELD, question.salt, &question.parts);
        assert!(said.len() <= ranges::MAX_PARTS * ranges::DIVISIONS);
        assert_eq!(Question::parse(&question.encode()), Some(question));
    }
    if let Some(answer) = Answer::parse(data) {
        let mut differing = Differing::new(&HELD, [1; 8]);
        let asked = differing.question();
        differing.answered(&HELD, &answer.parts);
        assert!(differing.question().len() <= asked.len() * ranges::DIVISIONS * ranges::DIVISIONS);
        assert_eq!(Answer::parse(&answer.encode()), Some(answer));
    }
    if let Some(agent) = std::str::from_utf8(data).ok().and_then(Agent::parse) {
        assert!(agent.program.len() <= 32 && agent.versions.least <= agent.versions.most);
        let _ = agent.no_common();
    }
    let (mut inflight, mut now, mut running, mut ran) = (
        Inflight::default(),
        *START,
        BTreeSet::new(),
        BTreeSet::new(),
    );
    for word in data.as_chunks::<4>().0.iter().take(2000) {
        let [what, who, id, more] = *word;
        let (peer, id) = (PeerId([who % 3; 32]), u64::from(id));
        match what % 4 {
            0 => now += Duration::from_millis(u64::from(more)),
            1 if running.remove(&(peer, id)) => {
                drop(inflight.finish(peer, id, &vec![0; usize::from(more) * 64], now))
            }
            _ => {
                let route = (more != 0).then_some((u64::from(more % 20), 4096));
                let asked = Arrival {
                    peer,
                    id,
                    kind: u16::from(what / 4 % 2),
                    bytes: usize::from(more),
                    route,
                };
                if inflight.admit(&asked, (), now) == Admit::Run {
                    assert!(
                        running.insert((peer, id)) && ran.insert((peer, id)),
                        "run twice"
                    );
                }
            }
        }
        assert_eq!(inflight.running(), running.len());
        assert!(running.iter().filter(|(of, _)| *of == peer).count() <= RUNNING);
        assert!(inflight.kept() <= ALL_KEPT);
    }
});
