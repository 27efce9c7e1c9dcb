use super::super::Transport;
use super::*;
use std::net::SocketAddr;

mod owed;
mod renewal;
mod rounds;

const UDP: Port = Port {
    transport: Transport::Udp,
    number: 4100,
};
const TCP: Port = Port {
    transport: Transport::Tcp,
    number: 4100,
};
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// What a router answers to who asks for that, for so many seconds.
type Answer = dyn FnMut(&Record, u32) -> Result<Granted, Failure>;

/// A router of the tests: what it answers, and what it was asked.
struct World {
    machine: Machine,
    now: Instant,
    unix: u64,
    answers: Box<Answer>,
    /// Orders, each with the time since the beginning.
    asked: Vec<(Duration, Order)>,
    begun: Instant,
    seed: u32,
    /// Whether the kernel gives random numbers.
    is_random: bool,
}

fn gateway(local: &str) -> Gateway {
    Gateway {
        address: "192.168.1.1".parse().unwrap(),
        local: local.parse().unwrap(),
    }
}

fn home() -> Situation {
    Situation {
        is_enabled: true,
        ports: vec![UDP, TCP],
        gateway: Some(gateway("192.168.1.7")),
    }
}

fn opens(external: u16, lease: u32) -> Result<Granted, Failure> {
    Ok(Granted {
        external: SocketAddr::new("203.0.113.9".parse().unwrap(), external),
        lease,
        epoch: None,
    })
}

fn by(
    only: Protocol,
    lease: u32,
) -> impl FnMut(&Record, u32) -> Result<Granted, Failure> + 'static {
    move |record, _| match record.protocol == only {
        true => opens(record.external, lease),
        false => Err(Failure::Silent),
    }
}

impl World {
    fn new(
        records: Vec<Record>,
        answers: impl FnMut(&Record, u32) -> Result<Granted, Failure> + 'static,
    ) -> World {
        let begun = Instant::now();
        World {
            machine: Machine::new(records),
            now: begun,
            unix: 1_700_000_000,
            answers: Box::new(answers),
            asked: Vec::new(),
            begun,
            seed: 7,
            is_random: true,
        }
    }

    /// Asks whatever is to be asked now, each question in no time.
    fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 100, "it asks for ever: {:?}", self.asked);
            let (seed, is_random) = (&mut self.seed, self.is_random);
            let mut random = || {
                *seed = seed.wrapping_mul(747_796_405).wrapping_add(1);
                is_random.then_some(*seed)
            };
            let Some(order) = self.machine.poll(self.now, self.unix, &mut random) else {
                break;
            };
            if let Order::Map { record, .. } = &order {
                assert!(
                    self.machine.records().contains(record),
                    "saved before it is asked"
                );
            }
            self.asked.push((self.now - self.begun, order));
            let outcome = match &order {
                Order::Map { record, lease } => (self.answers)(record, *lease),
                Order::Remove(record) => opens(record.external, 0),
            };
            self.machine.done(self.now, self.unix, &order, outcome);
        }
    }

    fn set(&mut self, situation: Situation) {
        self.machine.set(self.now, situation);
        self.settle();
    }

    /// Lets time pass, from one deadline to the next.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.machine.deadline().filter(|next| *next <= end) {
            let next = next.max(self.now + Duration::from_millis(1));
            self.unix += (next - self.now).as_secs();
            self.now = next;
            self.settle();
        }
        self.now = end;
    }

    fn status(&self) -> Status {
        self.machine.status()
    }

    /// How often a port was asked for since the last look.
    fn count(&mut self) -> usize {
        self.asked.drain(..).count()
    }

    fn trouble(&self) -> Option<Trouble> {
        self.status().trouble
    }
}

fn of(order: &Order) -> Record {
    match order {
        Order::Map { record, .. } | Order::Remove(record) => *record,
    }
}
