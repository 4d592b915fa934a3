//! How the parts of a layer are computed: by the engine's thread alone, or shared out to its team.
//!
//! A share is some of the columns of what a part gives: panels of a product, or heads of attention with the queries, keys and
//! values that they need. A helper sees the rows that go in and computes into buffers that lie ready for it; its leader
//! copies those columns to their place. Numbers do not depend on who computes them.

use super::encoder::{Chain, Layer};
use super::kernel::{After, Arch, Floats, PANEL};
use super::layers::attention::Attention;
use super::layers::matrix::Matrix;
use super::team::{Task, Team};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Shares of a part at most: so many that who comes late finds something to do, and so few that the weights of one are worth
/// asking for ahead.
const SHARES: usize = 8;

/// A part of a layer: all that lies between what needs whole rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// From rows to the results of the heads.
    Attention,
    /// From those to a row.
    Out,
    /// The first product of the feed-forward part.
    Up,
    /// The second product of the feed-forward part.
    Down,
}

impl Part {
    fn matrix(self, layer: &Layer) -> &Matrix {
        match self {
            Part::Attention => &layer.attention.qkv,
            Part::Out => &layer.attention.out,
            Part::Up => &layer.feed_forward.up,
            Part::Down => &layer.feed_forward.down,
        }
    }

    fn after(self, layer: &Layer) -> After {
        match self {
            Part::Up => layer.feed_forward.after_up(),
            _ => After::Nothing,
        }
    }

    /// Numbers from one row of the input to the next.
    fn input_stride(self, layer: &Layer) -> usize {
        match self {
            // A gated row has been made half as wide in its place.
            Part::Down => layer.feed_forward.width(),
            _ => self.matrix(layer).depth(),
        }
    }

    /// Numbers of a row of the output.
    fn width(self, layer: &Layer) -> usize {
        match self {
            Part::Attention => layer.attention.heads.query_width(),
            _ => self.matrix(layer).width(),
        }
    }

    /// How it is dealt to those who compute it.
    fn deal(self, layer: &Layer) -> Deal {
        let heads = layer.attention.heads;
        match self {
            // Heads narrower than a panel stay together as long as they fill one.
            Part::Attention => Deal::new(
                heads.keys,
                PANEL.div_ceil(heads.width),
                heads.query_width() / heads.keys,
            ),
            // AVX-512 takes two panels at once.
            _ => Deal::new(self.matrix(layer).width().div_ceil(PANEL), 2, PANEL),
        }
    }
}

/// How a part is dealt: so many units to a share, which are panels, or heads of keys with the queries that they serve.
#[derive(Debug, Clone, Copy)]
struct Deal {
    units: usize,
    each: usize,
    /// Columns of the output in a unit; the last may have less.
    columns: usize,
}

impl Deal {
    fn new(units: usize, step: usize, columns: usize) -> Deal {
        let each = units.div_ceil(SHARES).next_multiple_of(step).min(units);
        Deal { units, each, columns }
    }

    /// All of it in one share.
    fn undivided(self) -> Deal {
        Deal {
            each: self.units,
            ..self
        }
    }

    fn shares(self) -> usize {
        self.units.div_ceil(self.each)
    }

    fn units(self, share: usize) -> Range<usize> {
        share * self.each..self.units.min((share + 1) * self.each)
    }

    fn columns(self, share: usize, width: usize) -> Range<usize> {
        let Range { start, end } = self.units(share);
        start * self.columns..width.min(end * self.columns)
    }
}

/// What a thread computes its heads with.
#[derive(Default)]
pub struct Own {
    mixed: Floats,
    attention: Attention,
}

/// Rows of numbers that the helper sees as well while a part is computed from them. The buffer grows and never shrinks.
#[derive(Debug, Default)]
pub struct Rows(Arc<Floats>);

impl Rows {
    /// See [`Floats::get`].
    pub fn get(&self, len: usize) -> &[f32] {
        self.0.get(len)
    }

    /// See [`Floats::take`].
    pub fn take(&mut self, len: usize) -> &mut [f32] {
        let floats = Arc::get_mut(&mut self.0);
        floats
            .expect("rows are seen by others only while a part is computed")
            .take(len)
    }
}

/// Computes the parts of one layer.
pub struct Hands<'a> {
    /// The vector instructions.
    pub arch: Arch,
    /// The layer.
    pub layer: &'a Layer,
    /// Tokens of each sequence.
    pub lengths: &'a [usize],
    /// Buffers of this thread.
    pub own: &'a mut Own,
    /// With whom, if not alone: of which model, and the layer's number in it.
    pub company: Option<(&'a Company, &'a Arc<Chain>, usize)>,
}

impl Hands<'_> {
    /// Whether parts are shared out.
    pub fn shared(&self) -> bool {
        self.company.is_some()
    }

    /// `output = part(input)` for rows that lie side by side, at these `numbers` of the input.
    pub fn compute(&mut self, part: Part, input: &Rows, numbers: Range<usize>, output: &mut [f32]) {
        let deal = part.deal(self.layer);
        let company = self.company.filter(|_| deal.shares() > 1);
        let job = Job {
            arch: self.arch,
            layer: self.layer,
            part,
            deal: if company.is_some() { deal } else { deal.undivided() },
            lengths: self.lengths,
            input: &input.get(numbers.end)[numbers.start..],
        };
        match company {
            Some((company, chain, index)) => {
                let order = Order::new(&job, chain, index, input, numbers);
                company.compute(&job, order, output, self.own);
            }
            None => {
                let mut all = Some(0);
                job.run(output, self.own, &mut || all.take());
            }
        }
    }
}

/// A part on the rows of a batch.
struct Job<'a> {
    arch: Arch,
    layer: &'a Layer,
    part: Part,
    deal: Deal,
    lengths: &'a [usize],
    input: &'a [f32],
}

impl Job<'_> {
    /// Computes the shares that `next` hands out, each into its columns of `output`.
    fn run(&self, output: &mut [f32], own: &mut Own, next: &mut dyn FnMut() -> Option<usize>) {
        if self.part == Part::Attention {
            return self.attend(output, own, next);
        }
        let (matrix, after) = (self.part.matrix(self.layer), self.part.after(self.layer));
        let mut panels = || next().map(|share| self.deal.units(share));
        let stride = self.part.input_stride(self.layer);
        matrix.product_panels(self.arch, self.input, stride, output, after, &mut panels);
    }

    /// First what all heads of this thread need, so that the input is made ready for the product once, then head by head.
    fn attend(&self, output: &mut [f32], own: &mut Own, next: &mut dyn FnMut() -> Option<usize>) {
        let (attention, deal) = (&self.layer.attention, self.deal);
        let heads = attention.heads;
        let (width, context) = (heads.row_width(), heads.query_width());
        let mixed = own.mixed.take(output.len() / context * width);
        let mut claimed = 0_u64;
        let mut parts: Option<std::array::IntoIter<Range<usize>, 3>> = None;
        let mut panels = || {
            let left = parts.as_mut().and_then(Iterator::next);
            let columns = left.or_else(|| {
                let share = next()?;
                claimed |= 1 << share;
                if deal.shares() == 1 {
                    return Some(0..width);
                }
                parts.insert(heads.columns(&deal.units(share)).into_iter()).next()
            })?;
            Some(columns.start / PANEL..columns.end.div_ceil(PANEL))
        };
        let (qkv, after) = (&attention.qkv, After::Nothing);
        qkv.product_panels(self.arch, self.input, qkv.depth(), mixed, after, &mut panels);
        let mut first = 0;
        for tokens in self.lengths {
            let end = first + tokens;
            let mixed = &mut mixed[first * width..end * width];
            let output = &mut output[first * context..end * context];
            for share in shares_of(claimed) {
                own.attention
                    .run(self.arch, attention, deal.units(share), mixed, output);
            }
            first = end;
        }
    }
}

/// The numbers of the bits that are set.
fn shares_of(set: u64) -> impl Iterator<Item = usize> {
    (0..64).filter(move |share| set >> share & 1 == 1)
}

/// The team of an engine's thread, and what passes between the two.
pub struct Company {
    team: Arc<Team>,
    errand: Arc<Mutex<Errand>>,
}

impl Company {
    /// For the leader of that team.
    pub fn new(team: &Arc<Team>) -> Company {
        Company {
            team: team.clone(),
            errand: Arc::default(),
        }
    }

    /// See [`Team::gather`].
    pub fn gather(&self) -> bool {
        self.team.gather()
    }

    /// See [`Team::dismiss`].
    pub fn dismiss(&self) {
        self.team.dismiss();
    }

    fn compute(&self, job: &Job<'_>, order: Order, output: &mut [f32], own: &mut Own) {
        lock(&self.errand).set(order, job.lengths);
        let theirs = self.team.share(job.deal.shares(), self.errand.clone(), |next| {
            job.run(output, own, next);
        });
        lock(&self.errand).collect(job, theirs, output);
    }
}

/// What a helper computes, and what it leaves. The claims of the team order who has it when.
#[derive(Default)]
struct Errand {
    order: Option<Order>,
    lengths: Vec<usize>,
    own: Own,
    output: Floats,
}

/// Which part of which layer, on which numbers of which rows.
struct Order {
    arch: Arch,
    chain: Arc<Chain>,
    layer: usize,
    part: Part,
    deal: Deal,
    input: Arc<Floats>,
    numbers: Range<usize>,
}

impl Order {
    fn new(job: &Job<'_>, chain: &Arc<Chain>, layer: usize, input: &Rows, numbers: Range<usize>) -> Order {
        Order {
            arch: job.arch,
            chain: chain.clone(),
            layer,
            part: job.part,
            deal: job.deal,
            input: input.0.clone(),
            numbers,
        }
    }
}

fn lock(errand: &Mutex<Errand>) -> MutexGuard<'_, Errand> {
    // A panic below it ends the thread through the hook, and whoever comes then writes all anew.
    errand.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Errand {
    fn set(&mut self, order: Order, lengths: &[usize]) {
        self.order = Some(order);
        self.lengths.clear();
        self.lengths.extend(lengths);
    }

    /// Puts the columns of the helper's shares where they belong, and gives up what it has seen.
    fn collect(&mut self, job: &Job<'_>, theirs: u64, output: &mut [f32]) {
        self.order = None;
        if theirs == 0 {
            return;
        }
        let width = job.part.width(job.layer);
        let from = self.output.get(output.len());
        for (row, from) in output.chunks_exact_mut(width).zip(from.chunks_exact(width)) {
            for share in shares_of(theirs) {
                let columns = job.deal.columns(share, width);
                row[columns.clone()].copy_from_slice(&from[columns]);
            }
        }
    }
}

impl Task for Mutex<Errand> {
    fn help(&self, next: &mut dyn FnMut() -> Option<usize>) {
        let mut errand = lock(self);
        let Errand {
            order,
            lengths,
            own,
            output,
        } = &mut *errand;
        let order = order.as_ref().expect("an errand that is shared out has an order");
        let layer = &order.chain.encoder.layers[order.layer];
        let rows = order.numbers.len() / order.part.input_stride(layer);
        let job = Job {
            arch: order.arch,
            layer,
            part: order.part,
            deal: order.deal,
            lengths,
            input: &order.input.get(order.numbers.end)[order.numbers.start..],
        };
        job.run(output.take(rows * order.part.width(layer)), own, next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Precision;
    use crate::engine::kernel::arch;
    use crate::engine::{LoadOptions, Model};
    use std::path::Path;

    fn models() -> Vec<(String, Arc<Chain>)> {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let folders = std::fs::read_dir(golden)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let mut models = vec![];
        for folder in folders.filter(|folder| folder.join("modules.json").exists()) {
            for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
                let options = LoadOptions {
                    precision,
                    ..LoadOptions::default()
                };
                let model = Model::load(&folder, &options, &mut |_| ()).unwrap();
                let name = format!("{} {precision:?}", folder.file_name().unwrap().display());
                models.push((name, model.chain()));
            }
        }
        assert!(models.len() > 30, "the small models are not where they were");
        models
    }

    fn number(i: usize) -> f32 {
        ((i * 7919 + 13) % 1009) as f32 / 504.5 - 1.0
    }

    // Goal: a part is the same to the bit, whoever computes which of its shares. Method: every part of every layer of every
    // family in every precision, for two sequences, its shares dealt to leader and helper by turns, and all to one of them.
    #[test]
    fn parts_are_the_same_whoever_computes_them() {
        let mut divided = 0;
        for (name, chain) in models() {
            for (index, layer) in chain.encoder.layers.iter().enumerate() {
                for part in [Part::Attention, Part::Out, Part::Up, Part::Down] {
                    let lengths = [5, 12];
                    let rows: usize = lengths.iter().sum();
                    let input_stride = part.input_stride(layer);
                    let numbers = 0..rows * input_stride;
                    let mut input = Rows::default();
                    let values = input.take(numbers.end).iter_mut().zip(0..);
                    values.for_each(|(value, i)| *value = number(i));
                    // These models are narrow: as they are dealt they would not be divided.
                    let deal = Deal {
                        each: 1,
                        ..part.deal(layer)
                    };
                    let mut job = Job {
                        arch: arch(),
                        layer,
                        part,
                        deal: deal.undivided(),
                        lengths: &lengths,
                        input: input.get(numbers.end),
                    };
                    let mut own = Own::default();
                    let mut whole = vec![0.0; rows * part.width(layer)];
                    let mut all = Some(0);
                    job.run(&mut whole, &mut own, &mut || all.take());
                    job.deal = deal;
                    divided += usize::from(deal.shares() > 1);
                    let every = u64::MAX >> (64 - deal.shares());
                    for theirs in [0x5555_5555_5555_5555 & every, 0, every] {
                        let mut output = vec![f32::NAN; whole.len()];
                        let errand = Mutex::new(Errand::default());
                        let order = Order::new(&job, &chain, index, &input, numbers.clone());
                        lock(&errand).set(order, &lengths);
                        let mut left = shares_of(theirs);
                        errand.help(&mut || left.next());
                        let mut left = shares_of(every & !theirs);
                        job.run(&mut output, &mut own, &mut || left.next());
                        lock(&errand).collect(&job, theirs, &mut output);
                        let same = output.iter().zip(&whole).all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same, "{name}, layer {index}, {part:?}, {theirs:b} of {deal:?}");
                    }
                }
            }
        }
        assert!(
            divided > 100,
            "{divided} parts of these models had more than one share"
        );
    }
}
