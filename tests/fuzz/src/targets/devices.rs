//! Every device, in the hands of a guest that does whatever the bytes say ([`crate::encoding`]).
//!
//! Registers, rings, session and worker are the real ones; only the I/O thread is a loop that runs when a step lets
//! it, so that the same bytes do the same thing each time. Whatever was done, the device must serve after a reset.

use devices::io::IoLoop;
use devices::virtio::hostile::attack::Engine;
use devices::virtio::hostile::{self, Attack, Scope, Subject};
use devices::virtio::testing::{Step, Tape, reg};

use crate::encoding::{decode, encode};
use crate::target::Target;

/// A tape that is longer is not worth its time as a seed.
const MAX_SEED: usize = 4096;

/// A device.
#[derive(Debug)]
struct Device(Subject);

/// A target for each device.
#[must_use]
pub fn all() -> Vec<Box<dyn Target>> {
    let target = |subject| -> Box<dyn Target> { Box::new(Device(subject)) };
    hostile::subjects().into_iter().map(target).collect()
}

impl Device {
    fn attack(&self, queue: u16, tape: Tape) -> Attack {
        let engine = Engine::Loop(IoLoop::new().expect("cannot make a loop"));
        Attack::new(&self.0, engine, queue, tape)
    }
}

impl Target for Device {
    fn name(&self) -> &str {
        self.0.name
    }

    fn about(&self) -> String {
        format!(
            "the virtio device {}, driven by a hostile guest",
            self.0.name
        )
    }

    fn run(&self, data: &[u8]) {
        let mut attack = self.attack(0, Tape::default());
        for step in decode(data) {
            attack.apply(&step);
        }
        attack.turn();
        attack.machine.set(reg::STATUS, 0);
        assert_eq!(attack.machine.get(reg::STATUS), 0, "a reset ends at once");
        attack.assert_recovers();
    }

    fn seeds(&self) -> Vec<Vec<u8>> {
        let stage = (self.0.stage)();
        let queues = u16::try_from(stage.queues.len()).expect("too many queues");
        drop(stage);
        let mut seeds = Vec::new();
        for case in hostile::cases(&self.0) {
            let aims = if case.scope == Scope::Queue {
                queues
            } else {
                1
            };
            for queue in 0..aims {
                let tape = Tape::recording();
                let mut attack = self.attack(queue, tape.clone());
                (case.act)(&mut attack);
                attack.provoke();
                let seed = encode(&tape.steps());
                if seed.len() <= MAX_SEED {
                    seeds.push(seed);
                }
            }
        }
        seeds.sort_unstable();
        seeds.dedup();
        seeds
    }

    fn explain(&self, data: &[u8]) -> String {
        let steps = decode(data);
        let line = |step: &Step| format!("{step:x?}\n");
        steps.iter().map(line).collect()
    }
}
