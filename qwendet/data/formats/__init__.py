"""Annotations in any format to annotations in any other, image by image.

detect.py  which format, which reader          convert.py   reader -> fitting -> writer
records.py what a reader yields                fitting.py   boxes held against their image
coco.py, voc.py, yolo.py, jsonl.py             readers; *_layout.py finds the files, coco_table.py holds them
tools.py   annotation tools, a reader each (cvat.py …)  drawn.py what these yield, drawn_records.py
*_writer.py, writer.py                         writers; placing.py copies or links the images
"""
