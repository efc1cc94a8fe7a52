"""One `Run` for every job that trains, and pretraining: settings, optimizers, exact resumption, throughput, report."""
