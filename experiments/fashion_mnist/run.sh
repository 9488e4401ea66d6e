#!/bin/sh
# Fashion-MNIST, from the data to the shipped model, its scores and its tables.
#
# Command:   experiments/fashion_mnist/run.sh
# Hardware:  one GPU of 16 GB or more; Debian's dataset-fashion-mnist, or a download
# Writes:    checkpoints/fashion_mnist_classifier, checkpoints/fashion_mnist (averaged weights in 16 bits),
#            checkpoints/fashion_mnist_raw, logs/fashion_mnist, experiments/tables/results/*_fashion_mnist.*
#
# What is there already is not made again, so that the same command goes on where it was stopped, the training too.
# Remove a folder beneath checkpoints to make it anew.
set -eu
cd "$(dirname "$0")/../.."
config=experiments/fashion_mnist/class_conditional.yaml
model=checkpoints/fashion_mnist
logs=logs/fashion_mnist

if [ ! -d ${model}_classifier ]; then
    diffusion-lab classifier --config $config --output ${model}_classifier
fi
if [ ! -d $model ]; then
    if [ ! -d $logs/model ]; then
        last=$(ls -t $logs/version_*/checkpoints/*.ckpt 2>/dev/null | head -n 1)
        diffusion-lab fit --config $config --output $logs/model ${last:+--ckpt_path "$last"}
    fi
    last=$(ls -t $logs/version_*/checkpoints/*.ckpt | head -n 1)
    diffusion-lab export "$last" ${model}_raw --weights raw --dtype float16 --overwrite
    diffusion-lab export $logs/model $model --dtype float16
fi
python experiments/fashion_mnist/measure.py --picture $logs/grid.png
for table in ddim_steps_and_eta few_step_solvers guidance_and_dropout ema_and_reference; do
    diffusion-lab table experiments/tables/$table.yaml --edition fashion_mnist
done
