//! From token vectors to one vector, and from that to what a caller asked for.

use super::VectorFault;

/// How token vectors become one. Several modes of one model are joined end to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// The vector of the first token that takes part.
    Cls,
    /// The largest value of each component.
    Max,
    /// The mean.
    Mean,
    /// The sum divided by the root of the count.
    MeanSqrtLen,
    /// The mean weighted by position, counted from one.
    WeightedMean,
    /// The last token's vector.
    LastToken,
}

impl Mode {
    /// What [`Mode::from_name`] knows.
    pub(super) const NAMES: &str = "cls, max, mean, mean_sqrt_len_tokens, weightedmean, lasttoken";

    const ALL: [(Mode, &str, &str); 6] = [
        (Mode::Cls, "cls", "pooling_mode_cls_token"),
        (Mode::Max, "max", "pooling_mode_max_tokens"),
        (Mode::Mean, "mean", "pooling_mode_mean_tokens"),
        (
            Mode::MeanSqrtLen,
            "mean_sqrt_len_tokens",
            "pooling_mode_mean_sqrt_len_tokens",
        ),
        (
            Mode::WeightedMean,
            "weightedmean",
            "pooling_mode_weightedmean_tokens",
        ),
        (Mode::LastToken, "lasttoken", "pooling_mode_lasttoken"),
    ];

    /// By the name that sentence-transformers gives the mode.
    pub(super) fn from_name(name: &str) -> Option<Mode> {
        Mode::ALL
            .iter()
            .find(|(_, known, _)| *known == name)
            .map(|(mode, ..)| *mode)
    }

    /// By the key that switches the mode on in `1_Pooling/config.json`.
    pub(super) fn from_key(key: &str) -> Option<Mode> {
        Mode::ALL
            .iter()
            .find(|(.., known)| *known == key)
            .map(|(mode, ..)| *mode)
    }

    fn name(self) -> &'static str {
        Mode::ALL[self as usize].1
    }
}

/// The Pooling module of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pooling {
    /// At least one, in the order in which their vectors are joined.
    pub modes: Vec<Mode>,
    /// Whether the tokens of the prompt take part.
    pub include_prompt: bool,
}

impl Pooling {
    /// Such as `mean`, or `cls+max` where several are joined.
    pub fn name(&self) -> String {
        let names: Vec<&str> = self.modes.iter().map(|mode| mode.name()).collect();
        let prompt = if self.include_prompt {
            ""
        } else {
            ", prompt left out"
        };
        names.join("+") + prompt
    }

    /// By what each of `count` tokens of a sequence is multiplied before they are added up, where that is all that `mode`
    /// does. The first `prompt_tokens` belong to the prompt.
    pub fn weights(&self, mode: Mode, count: usize, prompt_tokens: usize) -> Option<Vec<f32>> {
        let first = if self.include_prompt {
            0
        } else {
            prompt_tokens.min(count)
        };
        let counted = count - first;
        let one = |place: usize| (0..count).map(|token| f32::from(token == place)).collect();
        let all = |weight: &dyn Fn(usize) -> f32, divisor: f32| {
            let divisor = divisor.max(1e-9);
            let weight = |token| {
                if token < first {
                    0.0
                } else {
                    weight(token) / divisor
                }
            };
            (0..count).map(weight).collect()
        };
        Some(match mode {
            Mode::Max => return None,
            Mode::Cls => one(if counted == 0 { 0 } else { first }),
            Mode::LastToken => one(count - 1),
            Mode::Mean => all(&|_| 1.0, counted as f32),
            Mode::MeanSqrtLen => all(&|_| 1.0, (counted as f32).sqrt()),
            Mode::WeightedMean => {
                let weight = |token: usize| (token + 1) as f32;
                all(&weight, (first..count).map(weight).sum())
            }
        })
    }

    /// Pools one sequence: `tokens` holds a row of `hidden` numbers for each token, of which the first
    /// `prompt_tokens` belong to the prompt. The vector has `hidden` numbers for each mode.
    pub fn pool(&self, tokens: &[f32], hidden: usize, prompt_tokens: usize) -> Vec<f32> {
        let count = tokens.len() / hidden;
        let first = if self.include_prompt {
            0
        } else {
            prompt_tokens.min(count)
        };
        let rows = || tokens[first * hidden..].chunks_exact(hidden);
        let counted = count - first;
        let mut all = Vec::with_capacity(hidden * self.modes.len());
        let sum = |weight: &dyn Fn(usize) -> f32, divisor: f32| {
            let mut sum = vec![0.0f32; hidden];
            for (index, row) in rows().enumerate() {
                let weight = weight(index);
                sum.iter_mut().zip(row).for_each(|(s, v)| *s += v * weight);
            }
            // The reference clamps its divisor likewise, where no token is left.
            let divisor = divisor.max(1e-9);
            sum.iter_mut().for_each(|s| *s /= divisor);
            sum
        };
        for mode in &self.modes {
            match mode {
                Mode::Cls => {
                    let first = if counted == 0 { 0 } else { first };
                    all.extend_from_slice(&tokens[first * hidden..][..hidden]);
                }
                Mode::Max => {
                    let mut most = vec![f32::NEG_INFINITY; hidden];
                    for row in rows() {
                        most.iter_mut().zip(row).for_each(|(m, v)| *m = m.max(*v));
                    }
                    all.extend(most);
                }
                Mode::Mean => all.extend(sum(&|_| 1.0, counted as f32)),
                Mode::MeanSqrtLen => all.extend(sum(&|_| 1.0, (counted as f32).sqrt())),
                Mode::WeightedMean => {
                    let weight = |index: usize| (first + index + 1) as f32;
                    let total = (0..counted).map(weight).sum();
                    all.extend(sum(&weight, total));
                }
                Mode::LastToken => all.extend_from_slice(&tokens[(count - 1) * hidden..]),
            }
        }
        all
    }
}

/// Refuses a vector that must not leave the engine.
pub(super) fn check(vector: Vec<f32>) -> Result<Vec<f32>, VectorFault> {
    if !vector.iter().all(|v| v.is_finite()) {
        Err(VectorFault::NotFinite)
    } else if vector.iter().all(|v| *v == 0.0) {
        Err(VectorFault::Zero)
    } else {
        Ok(vector)
    }
}

/// The vector as a caller asked for it: cut to `dimensions` (Matryoshka), then brought to length one if
/// `normalize`. More dimensions than there are leave the vector whole.
pub fn finish(mut vector: Vec<f32>, dimensions: Option<usize>, normalize: bool) -> Vec<f32> {
    if let Some(dimensions) = dimensions {
        vector.truncate(dimensions);
    }
    if normalize {
        // In 64 bits: squares of large components leave the range of 32.
        let length = vector.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        if length > 0.0 {
            vector
                .iter_mut()
                .for_each(|v| *v = (f64::from(*v) / length) as f32);
        }
    }
    vector
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(mode: Mode, include_prompt: bool) -> Vec<f32> {
        let tokens = [1.0, -1.0, 3.0, 5.0, 5.0, 0.0];
        Pooling {
            modes: vec![mode],
            include_prompt,
        }
        .pool(&tokens, 2, 1)
    }

    #[test]
    fn each_mode_pools_as_its_name_says() {
        assert_eq!(pool(Mode::Cls, true), [1.0, -1.0]);
        assert_eq!(pool(Mode::Max, true), [5.0, 5.0]);
        assert_eq!(pool(Mode::Mean, true), [3.0, 4.0 / 3.0]);
        assert_eq!(
            pool(Mode::MeanSqrtLen, true),
            [9.0 / 3f32.sqrt(), 4.0 / 3f32.sqrt()]
        );
        assert_eq!(pool(Mode::WeightedMean, true), [22.0 / 6.0, 9.0 / 6.0]);
        assert_eq!(pool(Mode::LastToken, true), [5.0, 0.0]);
    }

    #[test]
    fn a_prompt_that_is_left_out_does_not_count() {
        assert_eq!(pool(Mode::Mean, false), [4.0, 2.5]);
        assert_eq!(pool(Mode::Cls, false), [3.0, 5.0]);
        assert_eq!(pool(Mode::WeightedMean, false), [21.0 / 5.0, 10.0 / 5.0]);
    }

    #[test]
    fn a_cut_vector_has_length_one_again() {
        assert_eq!(finish(vec![3.0, 4.0, 12.0], Some(2), true), [0.6, 0.8]);
        assert_eq!(finish(vec![3.0, 4.0, 12.0], Some(2), false), [3.0, 4.0]);
        let huge = 2f32.powi(120);
        assert_eq!(finish(vec![3.0 * huge, 4.0 * huge], Some(9), true), [0.6, 0.8]);
    }

    #[test]
    fn what_must_not_leave_does_not() {
        assert_eq!(check(vec![0.0, f32::NAN]), Err(VectorFault::NotFinite));
        assert_eq!(check(vec![0.0, -0.0]), Err(VectorFault::Zero));
        assert!(check(vec![0.0, 1e-9]).is_ok());
    }
}
