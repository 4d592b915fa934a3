//! Trouble, drawn from the seed: what goes wrong, when it is over, and what calm times promise.

use super::*;

impl World {
    pub(super) fn draw_message(&mut self) -> Message {
        let rng = &mut self.rng;
        let most = if rng.one_in(3) { 30 } else { 5 };
        let chunk = rng.one_in(4).then(|| rng.range(1, most) as usize);
        let inputs = match chunk {
            Some(5..) => rng.range(20, 80),
            Some(_) if rng.one_in(4) => rng.range(1, 60),
            None if rng.one_in(20) => rng.range(1, 60),
            _ => rng.range(1, 4),
        };
        let longest = if rng.one_in(30) { 900 } else { 120 };
        let lane = if rng.one_in(3) {
            Lane::Bulk
        } else {
            Lane::Interactive
        };
        let tokens: Vec<usize> = (0..inputs).map(|_| rng.range(1, longest) as usize).collect();
        Message {
            lane,
            model: ModelId(rng.below(self.setup.models.len())),
            // One caller sends half of all.
            caller: CallerId(if rng.one_in(2) { 0 } else { rng.range(1, 6) }),
            chunk,
            at: lane,
            done: 0,
            attempt: 1,
            alone: false,
            deliveries: 0,
            sent: vec![false; tokens.len()],
            finished: false,
            slice: 0,
            moved: false,
            tokens,
            budget: rng.one_in(3).then(|| rng.range(0, 3000)),
            broken: rng.one_in(50),
            answerable: !rng.one_in(50),
            settled: 0,
            outcomes: 0,
        }
    }

    /// Trouble of one kind.
    pub(super) fn chaos(&mut self) {
        let pause = if self.rng.one_in(8) {
            30_000
        } else {
            self.rng.range(100, 6000)
        };
        self.plan(pause, Next::Chaos);
        if !self.trouble || self.logic.is_none() {
            return;
        }
        let session = self.session;
        let engine = self.rng.below(self.setup.engines);
        match self.rng.below(84) {
            0..6 if self.up => self.plan(0, Next::Down(session)),
            6..9 if self.link => {
                // Half open: nothing passes, and nobody says so, for a while or for ever.
                self.cut();
                self.disturbed();
                if !self.rng.one_in(3) {
                    let noticed = self.rng.range(1, 4000);
                    self.plan(noticed, Next::Down(session));
                }
            }
            9..15 if self.link && !self.blocked => {
                self.blocked = true;
                let until = if self.rng.one_in(3) {
                    60_000
                } else {
                    self.rng.range(1, 4000)
                };
                self.plan(until, Next::Unblock(session));
                self.step(Event::BrokerBlocked);
            }
            15..25 => {
                self.engines[engine].slow ^= true;
            }
            25..27 => self.engines[engine].stuck = true,
            27..29 => {
                let at = self.rng.below(self.setup.tokenizers);
                self.tokenizers[at].stuck = true;
            }
            29..33 => {
                self.tokenizer_slow ^= true;
            }
            33..36 => {
                self.counts.drains += 1;
                self.intake = false;
                self.step(Event::Drain);
            }
            36..44 => {
                let rng = &mut self.rng;
                let limits = draw_limits(rng);
                self.setup.limits = limits;
                self.disturbed();
                self.step(Event::Reloaded(limits));
            }
            44 => {
                let asleep = self.rng.range(1, 60_000);
                self.now += asleep;
                // What was slow goes on where it was.
                self.slow_until += asleep;
                self.disturbed();
            }
            45 if self.rng.one_in(2) => self.loader_stuck = true,
            46 if self.rng.one_in(4) => self.step(Event::CanaryWrong),
            47 => self.engines[engine].broken = true,
            48 => self.watchdog_stuck = Some(self.now),
            // The broker loses our consumer, or forgets to deliver, and says nothing.
            49..52 if self.link => {
                let lane = self.rng.below(3);
                self.unconsumed[lane] = true;
            }
            64..67 if self.link => {
                let lane = self.rng.below(3);
                self.undelivering[lane] = true;
            }
            52..56 => {
                self.tokenizer_slow = false;
                self.engines.iter_mut().for_each(|engine| engine.slow = false);
            }
            78..84 => {
                let limit = Duration::from_millis(self.rng.range(300, 20_000));
                self.step(Event::HeldTooLong { limit });
            }
            72..78 => self.memory_seen(),
            69..72 => {
                let one_in = if self.rng.one_in(2) { 1 } else { 6 };
                self.unconfirming = if self.unconfirming.is_some() {
                    None
                } else {
                    Some(one_in)
                };
            }
            67..69 => {
                let lane = self.rng.below(3);
                self.reader_stuck[lane] = true;
            }
            // Clients fall silent, or come back: canaries are all the work there is.
            56..62 => self.quiet ^= true,
            _ => {}
        }
    }

    /// Memory runs short, or there is plenty of it again. Nobody waits for a reading that never comes.
    fn memory_seen(&mut self) {
        let most = if self.rng.one_in(2) { 120 } else { 80 };
        let in_use = self.rng.range(0, most);
        let reading = Memory {
            in_use: in_use << 20,
            limit: 100 << 20,
        };
        self.step(Event::MemorySeen(reading));
    }

    pub(super) fn heal(&mut self) {
        self.trouble = false;
        self.tokenizer_slow = false;
        self.undelivering = [false; Lane::COUNT];
        self.unconfirming = None;
        self.engines.iter_mut().for_each(|engine| engine.slow = false);
        if self.link && self.blocked {
            self.unblock();
        }
    }

    /// Whatever was promised about calm times begins anew.
    pub(super) fn disturbed(&mut self) {
        self.calm_since = self.now;
    }

    /// In calm times pets come, whether the broker blocks publishing or not.
    pub(super) fn expect_pets(&mut self) {
        let slow = |engine: &Engine| {
            engine.stuck || engine.broken || (!engine.held.is_empty() && engine.step_ms > CALM_STEP_MS)
        };
        let calm = !self.tokenizers.iter().any(|tokenizer| tokenizer.stuck)
            && self.watchdog_stuck.is_none()
            && !self.unconsumed.contains(&true)
            && !self.undelivering.contains(&true)
            && !self.reader_stuck.contains(&true)
            && self.unconfirming.is_none()
            && !self.loader_stuck
            && self.first_loads.is_empty()
            && self.slow_until <= self.now
            && self.link
            && self.intake
            && self.oracle.killed.is_none()
            && !self.engines.iter().any(slow);
        if !calm {
            self.disturbed();
            return;
        }
        let limits = &self.setup.limits;
        let slack = limits.canary_interval + self.setup.pet_spacing + Duration::from_secs(3);
        let since = Moment::from_millis(self.calm_since);
        let since = self.oracle.pet.map_or(since, |pet| pet.max(since));
        let silent = self.moment().since(since);
        assert!(silent <= slack, "no pet for {silent:?} although nothing is wrong");
    }
}

fn draw_limits(rng: &mut Rng) -> Limits {
    let ms = |rng: &mut Rng, low, high| Duration::from_millis(rng.range(low, high));
    Limits {
        max_inflight: rng.range(1, 12) as usize,
        max_queue: rng.range(1, 24) as usize,
        max_queue_bytes: rng.range(2_000, 200_000) as usize,
        liveness_max_stall: ms(rng, 6000, 30_000),
        disconnect_kill: ms(rng, 1000, 10_000),
        watchdog_interval: Duration::from_secs(1),
        drain: ms(rng, 200, 5000),
        heartbeat_interval: Duration::from_secs(5),
        heartbeat_timeout: Duration::from_secs(45),
        slam_limit: if rng.one_in(2) {
            Duration::from_secs(20)
        } else {
            ms(rng, 20, 2000)
        },
        canary_interval: ms(rng, 100, 5000),
        max_attempts: 5,
        max_inputs: 2048,
        max_stream_inputs: 1 << 20,
        batch_inputs: 32,
        idle_unload: if rng.one_in(2) {
            Duration::ZERO
        } else {
            ms(rng, 50, 4000)
        },
    }
}

pub(super) fn draw_setup(rng: &mut Rng, models: usize) -> Setup {
    Setup {
        limits: draw_limits(rng),
        engines: rng.range(1, 4) as usize,
        tokenizers: rng.range(1, 4) as usize,
        prefetch: PREFETCH,
        batch_tokens: rng.range(100, 800) as usize,
        models: (0..models)
            .map(|model| ModelSetup {
                max_queue: rng.one_in(3).then(|| rng.range(1, 30) as usize),
                max_inflight: rng.one_in(4).then(|| rng.range(1, 12) as usize),
                idle_unload: rng
                    .one_in(4)
                    .then(|| Duration::from_millis(rng.range(0, 2) * rng.range(50, 4000))),
                kept: model == 0 || rng.one_in(2),
                bytes: rng.range(0, 20) << 20,
            })
            .collect(),
        default: ModelId(0),
        pet_spacing: Duration::from_millis(rng.range(100, 3000)),
    }
}
