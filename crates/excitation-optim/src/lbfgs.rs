//! LBFGS, which is no [`Optimizer`](burn::optim::Optimizer) in burn: it evaluates the loss itself, through a closure.

use burn::module::AutodiffModule;
use burn::optim::{GradientsParams, LBFGS, LearningRate};
use burn::tensor::backend::AutodiffBackend;

use crate::exciter::take_utilization;
use crate::grads::check_shapes;
use crate::slices::{Snapshot, check_members};
use crate::{Excitation, FindExperts};

impl<B: AutodiffBackend, F> Excitation<LBFGS<B>, F> {
    /// One step of LBFGS, all its iterations together, whose whole change is scaled; returns the module and the loss
    /// that LBFGS returned, which is that of its own, unscaled change.
    ///
    /// `closure` returns the loss and its gradients, with counts registered. The counts of the first evaluation, at the
    /// parameters before the step, give the factors.
    ///
    /// LBFGS remembers its own displacements, not the scaled ones, as every optimizer here keeps the moments of its own
    /// steps \[S\]. Its model of the curvature is therefore exact only where the factors are 1.
    ///
    /// Of its own, burn's LBFGS needs a gradient for every parameter.
    ///
    /// # Panics
    ///
    /// As [`Exciter::step`](crate::Exciter::step).
    pub fn step_closure<M>(
        &mut self,
        lr: LearningRate,
        module: M,
        mut closure: impl FnMut(M) -> (f64, GradientsParams),
    ) -> (M, f64)
    where
        M: AutodiffModule<B>,
        F: FindExperts<M>,
    {
        let layers = self.exciter.layers(&module);
        let members = layers.members();
        check_members(&module, &members);
        let before = Snapshot::take(&module, &members, self.exciter.decay(lr));
        let mut first = None;
        let (module, loss) = self.inner.step(lr, module, |module| {
            let at_first = first.is_none().then(|| module.clone());
            let (loss, mut grads) = closure(module);
            let utilization = take_utilization::<B::InnerBackend>(&layers, |id| grads.remove(id));
            if let Some(module) = at_first {
                check_shapes(vec![&grads], &module);
            }
            first.get_or_insert(utilization);
            (loss, grads)
        });
        let utilization = first.expect("LBFGS evaluates the loss at least once");
        let factors = self.exciter.next_factors(members, utilization);
        (before.scale_change(module, &factors), loss)
    }
}
