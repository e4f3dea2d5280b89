//! The model workload: when images are pushed in a month, and how large their layers are.

use larder_harness::{Content, Image, Kind, Random};

/// By how much bytes are scaled down.
pub const SCALE: u64 = 512;
const MONTH_S: f64 = 30.0 * 86_400.0;
/// Layers of an image; with its config these are eight blobs.
const LAYERS: usize = 7;
/// Mean bytes of a layer.
const LAYER_MEAN: f64 = 40e6 / LAYERS as f64;
/// Standard deviation of the logarithm of a layer's size: most are small, some are large.
const SIGMA: f64 = 1.5;
/// The largest layer, so that one draw does not decide about a month.
const LAYER_MAX: f64 = 1e9;
const SEED: u64 = 42;

/// A push.
#[derive(Debug, Clone)]
pub struct Push {
    /// Seconds from the beginning of the month.
    pub at: f64,
    number: u64,
    layers: [u64; LAYERS],
}

impl Push {
    /// What is pushed, with the bytes of its layers divided by `scale`.
    pub fn image(&self, scale: u64) -> Image {
        let layer = |(index, size): (usize, &u64)| Content::new(self.number * 16 + index as u64, (size / scale).max(1));
        Image::of_layers(Kind::Oci, self.number, self.layers.iter().enumerate().map(layer).collect())
    }

    /// Where it goes: one of ten is a release.
    pub fn tag(&self) -> String {
        if self.number.is_multiple_of(10) { format!("v1.{}.0", self.number / 10) } else { format!("build-{}", self.number) }
    }
}

/// The first `count` of `month` pushes, at moments that know nothing of each other.
pub fn pushes(count: usize, month: usize) -> Vec<Push> {
    let mut random = Random::new(SEED);
    let mean_gap = MONTH_S / month as f64;
    // Of a log-normal distribution, the mean is exp(mu + sigma^2 / 2).
    let mu = LAYER_MEAN.ln() - SIGMA * SIGMA / 2.0;
    let mut at = 0.0;
    (0..count as u64)
        .map(|number| {
            at += -mean_gap * unit(&mut random).ln();
            let layers = std::array::from_fn(|_| (mu + SIGMA * normal(&mut random)).exp().clamp(100.0, LAYER_MAX) as u64);
            Push { at, number, layers }
        })
        .collect()
}

/// Above 0, up to 1.
fn unit(random: &mut Random) -> f64 {
    (random.below(1 << 52) + 1) as f64 / (1u64 << 52) as f64
}

/// Box and Muller.
fn normal(random: &mut Random) -> f64 {
    let (radius, angle) = ((-2.0 * unit(random).ln()).sqrt(), std::f64::consts::TAU * unit(random));
    radius * angle.cos()
}
