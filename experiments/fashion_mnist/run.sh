#!/bin/sh
# Fashion-MNIST, from the data to a model in 16 bits, its scores and four tables.
#
# Command:   experiments/fashion_mnist/run.sh
# Hardware:  one GPU of 16 GB or more; Debian's dataset-fashion-mnist, or a download
# Writes:    checkpoints/fashion_mnist_classifier, checkpoints/fashion_mnist (averaged weights in 16 bits),
#            checkpoints/fashion_mnist_raw, logs/fashion_mnist_run, experiments/tables/results/*_fashion_mnist.*
#
# What is there already is not made again: the same command goes on where it was stopped by Ctrl-C or otherwise, the
# training from its last checkpoint. To train anew, remove both models and logs/fashion_mnist_run.
set -eu
cd "$(dirname "$0")/../.."
config=experiments/fashion_mnist/class_conditional.yaml
model=checkpoints/fashion_mnist
logs=logs/fashion_mnist_run
python=${PYTHON:-python3}

newest() {
    ls -t $logs/version_*/checkpoints/*.ckpt 2>/dev/null | head -n 1
}

if [ ! -d ${model}_classifier ]; then
    $python -m diffusion_lab classifier --config $config --output ${model}_classifier
fi
if [ -d $model ] && [ ! -d ${model}_raw ]; then
    echo "$model is there but the raw weights of its run are not: remove it to train anew" >&2
    exit 2
fi
if [ ! -d $model ]; then
    if [ ! -d $logs/model ]; then
        last=$(newest)
        $python -m diffusion_lab fit --config $config --output $logs/model \
            --trainer.logger.init_args.name fashion_mnist_run ${last:+--ckpt_path "$last"}
    fi
    # The raw weights are in the last checkpoint; the averaged ones of $logs/model have their score with them.
    $python -m diffusion_lab export "$(newest)" ${model}_raw --weights raw --dtype float16 --overwrite
    $python -m diffusion_lab export $logs/model $model --dtype float16
fi
$python experiments/fashion_mnist/measure.py --picture $logs/grid.png
for table in ddim_steps_and_eta few_step_solvers guidance_and_dropout ema_and_reference; do
    $python -m diffusion_lab table experiments/tables/$table.yaml --edition fashion_mnist
done
